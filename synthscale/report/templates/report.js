"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const one = (query, root = document) => root.querySelector(query);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const pictures = read("pictures");
  const source = (place) => "data:image/jpeg;base64," + pictures[place];
  for (const image of all("img[data-picture]")) image.src = source(image.dataset.picture);

  // Filters and sort order of the galleries.
  const chosen = { generator: one("#generator"), label: one("#label"), order: one("#order") };
  // Tiles without a score come last in either order.
  const number = (text, fallback) => (text === "" ? fallback : Number(text));
  const orders = {
    ranked: (a, b) => a.dataset.rank - b.dataset.rank,
    high: (a, b) => number(b.dataset.score, -1) - number(a.dataset.score, -1),
    low: (a, b) => number(a.dataset.score, 2) - number(b.dataset.score, 2),
    id: (a, b) => a.dataset.id.localeCompare(b.dataset.id),
    tight: (a, b) => a.dataset.rank - b.dataset.rank,
  };
  const arrange = () => {
    for (const section of all("section[data-generator]"))
      section.hidden = chosen.generator.value !== "" && section.dataset.generator !== chosen.generator.value;
    for (const list of all(".tiles")) {
      const tiles = [...list.children].sort(orders[chosen.order.value]);
      let shown = 0;
      for (const tile of tiles) {
        tile.hidden = chosen.label.value !== "" && tile.dataset.label !== chosen.label.value.slice(1);
        shown += !tile.hidden;
        list.append(tile);
      }
      const group = list.closest(".group");
      if (group) group.hidden = shown === 0;
      const nothing = one(".nothing", list.parentElement);
      if (nothing && !group) nothing.hidden = shown > 0;
    }
    for (const groups of all(".groups")) {
      const tight = chosen.order.value === "tight";
      const key = (group) => (tight ? Number(group.dataset.diameter) : -Number(group.dataset.size));
      groups.append(...[...groups.children].sort((a, b) => key(a) - key(b) || a.dataset.rank - b.dataset.rank));
    }
  };
  for (const choice of Object.values(chosen)) choice.addEventListener("change", arrange);
  // A link into the section of a hidden generator selects that generator.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    const section = link && document.getElementById(link.hash.slice(1))?.closest("section[data-generator]");
    if (!section?.hidden) return;
    chosen.generator.value = section.dataset.generator;
    arrange();
  });
  arrange();

  // Tiles of a gallery that the filters leave visible.
  const shownTiles = (button) => all(".tiles li", button.closest("[data-gallery]")).filter((tile) => tile.offsetParent);
  // Spreadsheets would run a cell that begins with = + - @ as a formula, so it gets an apostrophe.
  const quoted = (text) => `"${text.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.do === "copy") {
      const text = shownTiles(button).map((tile) => tile.dataset.id).join("\n");
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const area = document.createElement("textarea");
        area.value = text;
        document.body.append(area);
        area.select();
        document.execCommand("copy");
        area.remove();
      }
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy ids"), 1500);
    }
    if (button.dataset.do === "csv") {
      const rows = shownTiles(button).map((tile) =>
        [tile.dataset.id, tile.dataset.kind, tile.dataset.label, tile.dataset.score].map(quoted).join(","));
      const file = new Blob(["id,real_or_synthetic,label,label_quality_score\r\n" + rows.join("\r\n") + "\r\n"]);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = button.closest("[data-gallery]").dataset.gallery + ".csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
    if (button.classList.contains("tile")) enlarge(button);
    if (button.dataset.do === "close") one("#larger").close();
  });

  // The larger view: an image and its nearest real image.
  const frame = (figure, place, why, words) => {
    const holder = one(".frame", figure);
    holder.replaceChildren();
    if (place === undefined || place === "") holder.textContent = why;
    else {
      const image = new Image();
      image.src = source(place);
      image.alt = words[0];
      holder.append(image);
    }
    const lines = words.flatMap((text) => [document.createTextNode(text), document.createElement("br")]);
    one("figcaption", figure).replaceChildren(...lines);
  };
  const enlarge = (button) => {
    const data = button.closest("li").dataset;
    const [image, nearest] = all("#larger figure");
    const words = [data.id, data.kind + (data.label === "" ? "" : `, label ${data.label}`)];
    if (data.score !== "") words.push(`label quality score ${Number(data.score).toPrecision(3)}`);
    frame(image, data.picture, data.why, words);
    nearest.hidden = data.nearest === "";
    if (!nearest.hidden)
      frame(nearest, data.nearestPicture, data.nearestWhy, [
        data.nearest, "nearest real image",
        data.nearestDistance === "" ? "" : `distance ${Number(data.nearestDistance).toPrecision(3)}`]);
    one("#larger").showModal();
  };

  // The map.
  const map = one("#map");
  if (!map) return;
  const data = read("map-data");
  const svg = one("svg", map), tip = one(".tip", map), key = one(".key", map);
  const colour = one("#colour"), subset = one("#subset"), method = one("#method");
  const palette = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7a5195", "#999999"];
  const circles = data.points.map((point) => {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    circle.setAttribute("r", point[1] === 0 ? 3.6 : 3.2);
    return svg.appendChild(circle);
  });
  const other = palette.length - 1;
  // A real image has a probability from each generator's classifier: show the chosen generator's, or else the mean.
  const scoreOf = (point) => {
    if (Object.hasOwn(point[4], subset.value)) return point[4][subset.value];
    const values = Object.values(point[4]);
    return values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : undefined;
  };
  const mixed = (share) => {
    const [low, high] = [[0, 114, 178], [230, 120, 0]];
    return `rgb(${low.map((channel, i) => Math.round(channel + share * (high[i] - channel))).join(",")})`;
  };
  const colourOf = (point) => {
    if (colour.value === "label") return palette[point[2] < 0 ? other : Math.min(point[2], other)];
    if (colour.value === "score") return scoreOf(point) === undefined ? palette[other] : mixed(scoreOf(point));
    return palette[Math.min(point[1], other)];
  };
  const entries = () => {
    if (colour.value === "score") return [["#0072b2", "certainly real"], [mixed(0.5), "uncertain"], ["#e67800", "certainly synthetic"]];
    const names = colour.value === "label" ? data.labels : data.sets;
    const shown = names.slice(0, other).map((name, i) => [palette[i], name]);
    return names.length > other || colour.value === "label" ? [...shown, [palette[other], "others"]] : shown;
  };
  let at = -1;
  const places = () => data.projections[Number(method.value)].points;
  const paint = () => {
    const points = places();
    circles.forEach((circle, i) => {
      const point = data.points[i];
      circle.setAttribute("cx", points[i][0]);
      circle.setAttribute("cy", points[i][1]);
      circle.setAttribute("fill", colourOf(point));
      circle.setAttribute("fill-opacity", 0.75);
      const hidden = subset.value !== "" && point[1] !== 0 && data.sets[point[1]] !== subset.value;
      circle.toggleAttribute("hidden", hidden);
      circle.style.display = hidden ? "none" : "";
    });
    key.replaceChildren(...entries().map(([fill, name]) => {
      const item = document.createElement("li");
      const dot = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      for (const [attribute, value] of Object.entries({ cx: 6, cy: 6, r: 5, fill })) circle.setAttribute(attribute, value);
      dot.setAttribute("viewBox", "0 0 12 12");
      dot.append(circle);
      item.append(dot, name);
      return item;
    }));
    const shown = data.projections[Number(method.value)].shown;
    one("#shown").textContent = shown === null ? "" :
      `The axes explain ${Math.round(100 * shown[0])} % and ${Math.round(100 * shown[1])} % of the variance.`;
    show(-1);
  };
  const show = (index) => {
    circles[at]?.classList.remove("at");
    at = index;
    tip.hidden = at < 0;
    if (at < 0) return;
    circles[at].classList.add("at");
    const point = data.points[at], [x, y] = places()[at];
    const words = [point[0], data.sets[point[1]] + (point[2] < 0 ? "" : `, label ${data.labels[point[2]]}`)];
    if (scoreOf(point) !== undefined) words.push(`probability of being synthetic ${scoreOf(point).toPrecision(2)}`);
    tip.replaceChildren();
    if (point[3] !== null) {
      const image = new Image();
      image.src = source(point[3]);
      image.alt = "";
      tip.append(image);
    }
    tip.append(...words.flatMap((text) => [document.createTextNode(text), document.createElement("br")]));
    const box = svg.getBoundingClientRect(), area = map.getBoundingClientRect();
    const left = box.left - area.left + (x / data.width) * box.width, top = box.top - area.top + (y / data.height) * box.height;
    tip.style.left = `${Math.max(0, Math.min(left + 12, area.width - tip.offsetWidth))}px`;
    tip.style.top = `${top + 12}px`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * data.width, y = ((event.clientY - box.top) / box.height) * data.height;
    let best = -1, nearest = 15 ** 2;
    places().forEach((point, i) => {
      const distance = (point[0] - x) ** 2 + (point[1] - y) ** 2;
      if (distance < nearest && !circles[i].hasAttribute("hidden")) [best, nearest] = [i, distance];
    });
    if (best !== at) show(best);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  // Arrow keys move from point to point, ordered from left to right.
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") show(-1);
    if (!step) return;
    event.preventDefault();
    const points = places();
    const order = circles.map((_, i) => i).filter((i) => !circles[i].hasAttribute("hidden"))
      .sort((a, b) => points[a][0] - points[b][0]);
    show(order[(order.indexOf(at) + step + order.length) % order.length]);
  });
  for (const choice of [colour, subset, method]) choice.addEventListener("change", paint);
  paint();
})();
