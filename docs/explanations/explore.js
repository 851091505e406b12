// The page "Explore the losses". First the maths, which explore.ipynb compares with the library,
// then the drawing. An angle is in radians in the maths, in degrees in the settings.
window.explore = (() => {
  "use strict";
  const IMAGES = 40;
  const ARCS = [[0, 200], [120, 80]]; // centre and width in degrees: frequent class, rare class
  const MOST_ETA = 300;
  const START = {
    gamma: 0, eta: 0, temperature: 0.2, rare: 4, averaging: "pairs", anchor: "rare", angle: 100,
  };

  // ---- Maths ----

  // Angles and labels (1: rare) of a batch. The anchor comes first, the others fill their arcs.
  function layout({ rare, anchor, angle }) {
    const own = anchor === "rare" ? 1 : 0;
    const degrees = [angle], labels = [own];
    ARCS.forEach(([centre, width], label) => {
      const images = (label ? rare : IMAGES - rare) - (label === own ? 1 : 0);
      for (let i = 0; i < images; i++) {
        degrees.push(centre + width * ((i + 0.5) / images - 0.5));
        labels.push(label);
      }
    });
    return { angles: degrees.map((d) => (d * Math.PI) / 180), labels };
  }

  function logSumExp(values) {
    const top = Math.max(...values);
    return top + Math.log(values.reduce((sum, v) => sum + Math.exp(v - top), 0));
  }

  // [log p, log(1 - p)] of each column of an anchor with these scores
  function logProbabilities(scores) {
    const all = logSumExp(scores);
    const rest = (k) => logSumExp(scores.filter((_, j) => j !== k));
    return scores.map((score, k) => [score - all, rest(k) - all]);
  }

  // The same for all anchors; the row of anchor i has no entry for column i
  function logTable(angles, temperature) {
    return angles.map((own, i) => {
      const others = angles.filter((_, k) => k !== i);
      return logProbabilities(others.map((other) => Math.cos(other - own) / temperature));
    });
  }

  // Loss of a pair before averaging, and its derivative by log p
  function pairTerm([logP, logNotP], positive, { gamma, eta }) {
    const odds = Math.exp(logP - logNotP);
    if (!positive) return [-eta * logNotP, eta * odds];
    const focal = Math.exp(gamma * logNotP);
    return [-focal * logP, -focal * (1 - gamma * odds * logP)];
  }

  // Factors [negatives, positives] that turn the sums over an anchor's pairs into its loss
  function factors(labels, i, averaging) {
    if (averaging === "batch") return [1 / IMAGES, 1 / IMAGES];
    const same = labels.filter((label) => label === labels[i]).length;
    return [1 / (IMAGES - same), 1 / (same - 1)];
  }

  // AFCL of each anchor, and its derivatives by the scores: rows of IMAGES, 0 at the anchor
  function anchorLosses(table, labels, settings) {
    const losses = [], gradient = [];
    table.forEach((logs, i) => {
      const factor = factors(labels, i, settings.averaging);
      const others = labels.filter((_, k) => k !== i);
      const terms = logs.map((log, k) => {
        const positive = others[k] === labels[i];
        return pairTerm(log, positive, settings).map((x) => x * factor[positive ? 1 : 0]);
      });
      const total = terms.reduce((sum, term) => sum + term[1], 0);
      const row = terms.map((term, k) => term[1] - Math.exp(logs[k][0]) * total);
      row.splice(i, 0, 0);
      losses.push(terms.reduce((sum, term) => sum + term[0], 0));
      gradient.push(row);
    });
    return { losses, gradient };
  }

  // Step of descent along the circle that image k asks of image i: [by i's loss, by k's loss]
  function step(gradient, angles, temperature, i, k) {
    const slope = Math.sin(angles[k] - angles[i]) / (temperature * IMAGES);
    return [-gradient[i][k] * slope, -gradient[k][i] * slope];
  }

  // Steps at the anchor: [negatives, positives], each [by its own loss, by the losses of others]
  function forces(gradient, { angles, labels }, temperature) {
    const sums = [[0, 0], [0, 0]];
    for (let k = 1; k < IMAGES; k++) {
      const sum = sums[labels[k] === labels[0] ? 1 : 0];
      step(gradient, angles, temperature, 0, k).forEach((x, part) => (sum[part] += x));
    }
    return sums;
  }

  // Share of the rare class in the norms of the gradient: [of its own losses, at its embeddings]
  function rareShares(gradient, { angles, labels }, temperature) {
    const sums = [[0, 0], [0, 0]];
    gradient.forEach((row, i) => {
      const steps = row.map((_, k) => step(gradient, angles, temperature, i, k));
      sums[labels[i]][0] += Math.hypot(...row);
      sums[labels[i]][1] += Math.abs(steps.reduce((sum, [own, other]) => sum + own + other, 0));
    });
    return [0, 1].map((part) => sums[1][part] / (sums[0][part] + sums[1][part]));
  }

  // What one more image at this cosine would add to the anchor's loss: [as negative, as positive]
  function pairLosses({ angles, labels }, settings, cosine) {
    const scores = angles.slice(1).map((a) => Math.cos(a - angles[0]) / settings.temperature);
    const score = cosine / settings.temperature;
    const all = logSumExp([...scores, score]);
    const logs = [score - all, logSumExp(scores) - all];
    const factor = factors(labels, 0, settings.averaging);
    return [0, 1].map((positive) => factor[positive] * pairTerm(logs, positive, settings)[0]);
  }

  // All figures of the page for some settings, at these cosines and values of eta
  function figures(settings, cosines, etas) {
    const batch = layout(settings), { temperature } = settings;
    const table = logTable(batch.angles, temperature);
    const at = (eta) => anchorLosses(table, batch.labels, { ...settings, eta });
    const { losses, gradient } = at(settings.eta);
    return {
      loss: losses.reduce((sum, x) => sum + x, 0) / IMAGES,
      anchorLoss: losses[0],
      forces: forces(gradient, batch, temperature),
      pairs: cosines.map((cosine) => pairLosses(batch, settings, cosine)),
      shares: etas.map((eta) => rareShares(at(eta).gradient, batch, temperature)),
    };
  }

  // ---- Drawing ----

  const STYLE = `
    #explore {
      --frequent: #0072b2; --rare: #c44e00; --positive: #00795a; --negative: #8e3b74;
      display: grid; gap: 1rem 2rem;
      grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
    }
    html.quarto-dark #explore {
      --frequent: #56b4e9; --rare: #f5a742; --positive: #35d0a5; --negative: #ee9fcb;
    }
    #explore * { box-sizing: border-box; min-width: 0; }
    #explore form div {
      display: grid; grid-template-columns: 7.5rem 1fr 2.5rem; align-items: center;
      min-height: 2.5rem;
    }
    #explore input { height: 1.75rem; margin: 0; accent-color: var(--frequent); }
    #explore form span { text-align: right; }
    #explore .wide { grid-column: 1 / -1; }
    #explore :is(select, button) {
      font: inherit; color: inherit; background: transparent;
      border: 1px solid; border-radius: .3rem; padding: .2rem .5rem;
    }
    #explore option { color: #000; background: #fff; }
    #explore svg { display: block; width: 100%; max-width: 26rem; margin: auto; }
    #explore svg.sample { display: inline; width: 1rem; }
    #explore text { fill: currentColor; font-size: 12px; }
    #explore .axis { stroke: currentColor; fill: none; opacity: .55; }
    #explore .level { stroke-dasharray: 2 4; }
    #explore .curve { fill: none; stroke-width: 2.5; }
    #explore .dashed { stroke-dasharray: 7 4; }
    #explore .dot { fill: none; stroke-width: 9; stroke-linecap: round; }
    #explore .handle { cursor: grab; outline: none; }
    #explore .ring { fill: transparent; stroke: currentColor; stroke-width: 2; }
    #explore .handle:focus-visible .ring { stroke-width: 5; }
    #explore h2 { font-size: 1rem; margin: 0 0 .3rem; padding: 0; border: 0; }
    #explore :is(p, td, th) { font-size: .85rem; margin: .3rem 0; }
    #explore table { width: 100%; font-variant-numeric: tabular-nums; }
    #explore :is(td, th) { padding: .15rem .3rem; text-align: right; border: 0; }
    #explore :is(td, th):first-child { text-align: left; }
    #explore .key {
      display: inline-block; width: 1.6rem; border-top: 3px solid; vertical-align: middle;
    }
    #explore .key.broken { border-top-style: dashed; }`;
  const slider = (name, text, least, most, by) =>
    `<div><label for="explore-${name}">${text}</label>
     <input type="range" id="explore-${name}" name="${name}"
       min="${least}" max="${most}" step="${by}"><span data-of="${name}"></span></div>`;
  const choice = (name, text, options) =>
    `<div><label for="explore-${name}">${text}</label>
     <select id="explore-${name}" name="${name}">
     ${options.map((option) => `<option>${option}</option>`).join("")}</select></div>`;
  const key = (colour, dashed) =>
    `<span class="key ${dashed ? "broken" : ""}" style="border-color: var(--${colour})"></span>`;
  const at = (degrees, radius) => {
    const angle = (degrees * Math.PI) / 180;
    return [radius * Math.cos(angle), -radius * Math.sin(angle)];
  };
  const disc = ([x, y], r, attributes) => `<circle cx="${x}" cy="${y}" r="${r}" ${attributes}/>`;
  const triangle = ([x, y], r) =>
    `<path fill="var(--rare)" d="M${x} ${y - 1.4 * r}l${1.3 * r} ${2.3 * r}h${-2.6 * r}z"/>`;
  const shape = (label, place, r) =>
    label ? triangle(place, r) : disc(place, r, `fill="var(--frequent)"`);
  const sample = (label) =>
    `<svg class="sample" viewBox="-8 -8 16 16">${shape(label, [0, 0], 5)}</svg>`;
  const line = (points, attributes) => {
    const texts = points.map((point) => point.map((x) => x.toFixed(1)).join());
    return `<polyline ${attributes} points="${texts.join(" ")}"/>`;
  };

  const PAGE = `<style>${STYLE}</style>
    <form aria-label="Settings">
      ${slider("gamma", "gamma", 0, 10, 0.5)}
      ${slider("eta", "eta", 0, MOST_ETA, 1)}
      ${slider("temperature", "temperature", 0.05, 1, 0.01)}
      ${slider("rare", "rare images", 2, IMAGES / 2, 1)}
      ${choice("averaging", "averaging", ["pairs", "batch"])}
      ${choice("anchor", "anchor's class", ["rare", "frequent"])}
      <button type="button">Reset</button>
    </form>
    <div>
      <h2>Pull and push on the anchor</h2>
      <svg class="circle" viewBox="-156 -156 312 312">
        <circle class="axis" r="100"></circle><g class="points"></g><g class="arrows"></g>
        <g class="handle" tabindex="0" role="slider" aria-label="Angle of the anchor in degrees"
          aria-valuemin="0" aria-valuemax="359">
          ${disc([0, 0], 22, `fill="transparent"`)}${disc([0, 0], 13, `class="ring"`)}
          <g class="own" pointer-events="none"></g>
        </g>
      </svg>
      <p>${sample(0)} frequent, ${sample(1)} rare, ringed: the anchor.
        Drag it, or use the arrow keys.</p>
    </div>
    <div class="wide">
      <table>
        <thead><tr><th>step of descent</th><th>own loss</th><th>others' losses</th></tr></thead>
        <tbody class="forces"></tbody>
      </table>
      <p>Counter-clockwise where positive. The length of an arrow is the square root of its step,
        up to a step of 0.5.</p>
    </div>
    <div>
      <h2>Loss of a pair</h2>
      <svg class="pairs" viewBox="0 0 360 230" role="img"
        aria-label="Loss of a pair against its cosine"></svg>
      <p>${key("positive")} positive, ${key("negative", true)} negative: what one more image would
        add. The anchor's loss now: <output class="anchor-loss"></output></p>
    </div>
    <div>
      <h2>The rare class's share of the gradient</h2>
      <svg class="shares" viewBox="0 0 360 230" role="img"
        aria-label="Share of the rare class in the gradient against eta"></svg>
      <p>${key("rare")} of its own losses: <output class="share-own"></output><br>
        ${key("rare", true)} at its embeddings: <output class="share-at"></output><br>
        dotted: its share of the images, <output class="share-images"></output></p>
    </div>`;

  // An arrow along the circle's tangent; the radius keeps two arrows apart
  function arrow(degrees, radius, force, colour, style) {
    const length = Math.min(95, 130 * Math.sqrt(Math.abs(force)));
    const ahead = degrees + 90 * Math.sign(force);
    const from = (point, angle, distance) => at(angle, distance).map((x, axis) => x + point[axis]);
    const foot = at(degrees, radius), tip = from(foot, ahead, length);
    const head = [from(tip, ahead + 150, 9), tip, from(tip, ahead - 150, 9)];
    const stroke = `stroke="var(--${colour})"`;
    return line([foot, tip], `class="curve ${style}" ${stroke}`) +
      line(head, `class="curve" ${stroke}`);
  }

  // Axes with three ticks each, and curves [{points, style, colour}] between `from` and `to`
  function plot({ from, to, xLabel, format }, curves) {
    const x = (v) => 48 + (300 * (v - from[0])) / (to[0] - from[0]);
    const y = (v) => 190 - (175 * (v - from[1])) / (to[1] - from[1]);
    const ticks = [0, 0.5, 1].map((part) => {
      const [u, v] = [0, 1].map((axis) => from[axis] + part * (to[axis] - from[axis]));
      const anchor = ["start", "middle", "end"][2 * part];
      return `<text x="${x(u)}" y="206" text-anchor="${anchor}">${u}</text>
        <text x="42" y="${y(v) + 4}" text-anchor="end">${format(v)}</text>`;
    });
    const drawn = curves.map(({ points, style, colour }) =>
      line(points.map(([u, v]) => [x(u), y(v)]), `class="${style}" stroke="${colour}"`));
    return `<path class="axis" d="M48 15V190H348"/>${ticks.join("")}${drawn.join("")}
      <text x="198" y="225" text-anchor="middle">${xLabel}</text>`;
  }

  // The smallest 1, 2 or 5 times a power of ten that is not below a value
  function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value));
    return [1, 2, 5, 10].map((digit) => digit * power).find((tick) => tick >= value);
  }

  const COSINES = Array.from({ length: 81 }, (_, i) => -1 + i / 40);
  const ETAS = Array.from({ length: 31 }, (_, i) => (i * MOST_ETA) / 30);
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  const signed = (x) => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(4);

  function drawCircle(find, settings, [negatives, positives]) {
    const { angles, labels } = layout(settings), { angle, anchor } = settings;
    const places = angles.map((a) => at((a * 180) / Math.PI, 100));
    const sum = ([own, others]) => own + others;
    find(".points").innerHTML = places.map((p, i) => (i ? shape(labels[i], p, 4.5) : "")).join("");
    find(".arrows").innerHTML = arrow(angle, 120, sum(positives), "positive", "") +
      arrow(angle, 80, sum(negatives), "negative", "dashed");
    find(".own").innerHTML = shape(labels[0], [0, 0], 7);
    find(".handle").setAttribute("transform", `translate(${places[0].join(" ")})`);
    find(".handle").setAttribute("aria-valuenow", angle);
    find(".handle").setAttribute("aria-valuetext", `${anchor} anchor at ${angle} degrees`);
    const row = (name, dashed, parts) =>
      `<tr><th scope="row">${key(name, dashed)} ${name}s</th>
       ${parts.map((x) => `<td>${signed(x)}</td>`).join("")}</tr>`;
    find(".forces").innerHTML = row("positive", false, positives) +
      row("negative", true, negatives);
  }

  const curve = (values, over, style, colour) =>
    ({ points: values.map((v, i) => [over[i], v]), style, colour: `var(--${colour})` });

  function drawPairs(find, { pairs, anchorLoss }) {
    const most = roundUp(Math.max(0.01, ...pairs.flat()));
    const axes = { from: [-1, 0], to: [1, most], xLabel: "cosine of the pair" };
    find(".pairs").innerHTML = plot({ ...axes, format: (v) => +v.toPrecision(3) }, [
      curve(pairs.map((p) => p[1]), COSINES, "curve", "positive"),
      curve(pairs.map((p) => p[0]), COSINES, "curve dashed", "negative"),
    ]);
    find(".anchor-loss").value = anchorLoss.toFixed(4);
  }

  function drawShares(find, { rare, eta }, shares, now) {
    const axes = { from: [0, 0], to: [MOST_ETA, 0.8], xLabel: "eta (dots: the present setting)" };
    const images = rare / IMAGES;
    const level = { points: [[0, images], [MOST_ETA, images]], style: "axis level", colour: "" };
    const parts = [0, 1].map((part) => [
      curve(shares.map((s) => s[part]), ETAS, part ? "curve dashed" : "curve", "rare"),
      curve([now[part], now[part]], [eta, eta], "dot", "rare"),
    ]);
    const format = (v) => `${Math.round(100 * v)}%`;
    find(".shares").innerHTML = plot({ ...axes, format }, [level, ...parts.flat()]);
    find(".share-own").value = percent(now[0]);
    find(".share-at").value = percent(now[1]);
    find(".share-images").value = percent(images);
  }

  function start(root) {
    root.innerHTML = PAGE;
    const find = (what) => root.querySelector(what);
    const form = find("form"), handle = find(".handle"), settings = {};
    const show = (changed) => {
      Object.assign(settings, changed);
      for (const [name, value] of Object.entries(settings))
        if (form.elements[name]) form.elements[name].value = value;
      for (const value of form.querySelectorAll("span"))
        value.textContent = settings[value.dataset.of];
      const result = figures(settings, COSINES, [...ETAS, settings.eta]);
      const now = result.shares.pop();
      drawCircle(find, settings, result.forces);
      drawPairs(find, result);
      drawShares(find, settings, result.shares, now);
    };
    const turn = (degrees) => show({ angle: ((Math.round(degrees) % 360) + 360) % 360 });
    form.addEventListener("input", ({ target }) =>
      show({ [target.name]: target.type === "range" ? Number(target.value) : target.value }));
    find("button").addEventListener("click", () => show(START));
    // A finger on the anchor drags it and does not scroll the page; touch-action ignores SVG groups
    handle.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    handle.addEventListener("pointerdown", (event) => handle.setPointerCapture(event.pointerId));
    handle.addEventListener("pointermove", (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = find(".circle").getBoundingClientRect();
      const x = event.clientX - box.x - box.width / 2;
      const y = event.clientY - box.y - box.height / 2;
      turn((Math.atan2(-y, x) * 180) / Math.PI);
    });
    handle.addEventListener("keydown", (event) => {
      const { angle } = settings;
      const turned = {
        ArrowUp: angle + 2, ArrowRight: angle + 2, ArrowDown: angle - 2, ArrowLeft: angle - 2,
        PageUp: angle + 20, PageDown: angle - 20, Home: 0, End: 359,
      }[event.key];
      if (turned === undefined) return;
      event.preventDefault();
      turn(turned);
    });
    show(START);
  }

  return { START, layout, figures, start };
})();
window.explore.start(document.getElementById("explore"));
