// What a reader would stumble over in the page as it stands: a list of sentences.
(() => {
  const found = [];
  const root = document.documentElement;
  const wide = root.scrollWidth - root.clientWidth;
  if (wide > 0) {
    const reach = (e) => e.getBoundingClientRect().right;
    const free = [...document.body.querySelectorAll("*")].filter((e) => !e.closest(".scroll,pre"));
    const worst = free.sort((a, b) => reach(b) - reach(a))[0];
    found.push(`the page is ${wide} px wider than the window: <${worst.tagName}> ${worst.className}`);
  }

  const rgb = (text) => {
    const part = (text.match(/[\d.]+/g) || []).map(Number);
    const scaled = text.startsWith("color(") ? part.map((v, i) => (i < 3 ? v * 255 : v)) : part;
    return scaled.length === 4 ? scaled : [...scaled, 1];
  };
  const over = (top, below) => {
    const a = top[3];
    return [0, 1, 2].map((i) => top[i] * a + below[i] * (1 - a)).concat(1);
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => {
      const s = v / 255;
      return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const paper = rgb(getComputedStyle(document.body).backgroundColor);
  const ground = (element) => {
    let color = paper;
    const chain = [];
    for (let e = element; e && e !== document.body; e = e.parentElement) chain.unshift(e);
    for (const e of chain) color = over(rgb(getComputedStyle(e).backgroundColor), color);
    return color;
  };

  for (const e of document.querySelectorAll("p,td,th,caption,a,h1,h2,h3,summary,figcaption,pre,dt,dd")) {
    if (!e.checkVisibility() || !e.textContent.trim()) continue;
    const ratio = contrast(rgb(getComputedStyle(e).color), ground(e));
    if (ratio < 4.5) {
      found.push(`contrast ${ratio.toFixed(1)} of <${e.tagName}> ${e.textContent.slice(0, 40)}`);
    }
  }

  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    if (!svg.checkVisibility() || frame.width === 0) continue;
    const name = svg.querySelector("title").id.replace("-title", "");
    const zoom = frame.width / svg.viewBox.baseVal.width;
    const inside = (box) => (one) => {
      const r = one.getBoundingClientRect();
      const [x, y] = [box.left + box.width / 2, box.top + box.height / 2];
      return r.left <= x && x <= r.right && r.top <= y && y <= r.bottom;
    };
    const rects = [...svg.querySelectorAll("rect")];
    const texts = [...svg.querySelectorAll("text")].map((element) => {
      const box = element.getBoundingClientRect();
      return { element, box, word: element.textContent };
    });
    for (const { element, box, word } of texts) {
      const cut = Math.max(
        frame.left - box.left, box.right - frame.right, frame.top - box.top, box.bottom - frame.bottom
      );
      if (cut > 1) found.push(`${name}: "${word}" is cut by ${cut.toFixed(0)} px`);
      const style = getComputedStyle(element);
      const size = parseFloat(style.fontSize) * zoom;
      if (size < 8.5) found.push(`${name}: "${word}" is ${size.toFixed(1)} px high`);
      let color = paper;
      for (const rect of rects.filter(inside(box))) {
        const css = getComputedStyle(rect);
        if (css.fill === "none") continue;
        const fill = rgb(css.fill);
        color = over([...fill.slice(0, 3), fill[3] * css.fillOpacity * css.opacity], color);
      }
      const ratio = contrast(rgb(style.fill), color);
      if (ratio < 4.5) found.push(`${name}: contrast ${ratio.toFixed(1)} of "${word}"`);
    }
    for (let i = 0; i < texts.length; i += 1) {
      for (let j = i + 1; j < texts.length; j += 1) {
        const [a, b] = [texts[i].box, texts[j].box];
        const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        // The boxes of lines of text hold their spacing: they may touch, letters may not.
        if (x > 0.5 && y > 3) {
          found.push(`${name}: "${texts[i].word}" and "${texts[j].word}" overlap, ${x.toFixed(0)} x ${y.toFixed(0)} px`);
        }
      }
    }
    const drawn = [...svg.querySelectorAll("rect,circle,path")].some((e) => {
      const r = e.getBoundingClientRect();
      return r.width > 1 && r.height > 0;
    });
    if (!drawn) found.push(`${name}: nothing is drawn`);
  }
  return found;
})()
