"""What a person would write in an afternoon: embed in a loop, cross-validate with scikit-learn, ask Datalab.

    python benchmarks/plain_script.py REAL SYNTHETIC

The peer of end_to_end.py: one process, the same encoder, a linear classifier of one strength, no resume, no
report.
"""

import sys
from pathlib import Path

import numpy as np
from cleanlab import Datalab
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from synthscale.embed.encoders.descriptor import DescriptorEncoder


def main(real: str, synthetic: str) -> None:
    encoder = DescriptorEncoder()
    files = [sorted(Path(folder).rglob("*.jpg")) for folder in (real, synthetic)]
    size = (encoder.image_size, encoder.image_size)
    paths = files[0] + files[1]
    vectors = []
    for start in range(0, len(paths), 64):
        batch = [
            np.asarray(Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC))
            for path in paths[start : start + 64]
        ]
        vectors.append(encoder.encode(np.stack(batch)))
    features = np.concatenate(vectors)
    label = np.repeat([0, 1], [len(files[0]), len(files[1])])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    p = cross_val_predict(model, features, label, cv=folds, method="predict_proba")
    q = p[np.arange(len(label)), label]
    lab = Datalab({"label": label}, label_name="label", verbosity=0)
    lab.find_issues(features=features[:, slice(*encoder.search)], issue_types={"near_duplicate": {}})
    duplicates = lab.get_issues("near_duplicate")["is_near_duplicate_issue"]
    print(1 - q[label == 1].mean(), 1 - q[label == 0].mean(), duplicates.mean())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
