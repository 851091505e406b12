// What every page of the site does in the browser, before smalldocs.js runs.

// Code: its colours, and a button to copy it
hljs.configure({cssSelector: "code.sourceCode.python"});
hljs.highlightAll();
for (const block of document.querySelectorAll("main pre.code-with-copy")) {
  const code = block.parentElement, box = document.createElement("div"), button = document.createElement("button");
  box.className = "code-copy-outer-scaffold";
  button.className = "code-copy-button";
  button.title = "Copy to Clipboard";
  button.append(Object.assign(document.createElement("i"), {className: "bi"}));
  code.replaceWith(box);
  box.append(code, button);
}

// Boxes wider than the column: within reach of the keyboard, with a sign that they scroll
for (const box of document.querySelectorAll("main :is(pre, .cell-output-display, .math.display, .sd-table)")) {
  const mark = () => {
    const hidden = box.scrollWidth - box.clientWidth;
    box.classList.toggle("more-left", box.scrollLeft > 1);
    box.classList.toggle("more-right", hidden - box.scrollLeft > 1);
    if (hidden > 1) box.tabIndex = 0;
  };
  box.addEventListener("scroll", mark, {passive: true});
  new ResizeObserver(mark).observe(box);
  document.fonts.ready.then(mark);
}
