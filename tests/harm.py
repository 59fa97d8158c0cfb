"""An object that runs code when it is unpickled."""

import pickle
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Harm:
    """Writes a file when it is unpickled, in whichever process does that."""

    file: Path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.file)!r}, 'w').close()",)

    def pickled(self) -> bytes:
        """Return a pickle that does harm."""
        return pickle.dumps(self)

    @property
    def is_done(self) -> bool:
        """Whether the harm was done."""
        return self.file.exists()
