// What axe-core finds in the pages of the theme: regions and heads of columns without a name, and
// tables that only a mouse can scroll.
document$.subscribe(() => {
  document.querySelector(".md-path")?.setAttribute("aria-label", "Breadcrumbs");
  for (const nav of document.querySelectorAll("nav[aria-labelledby]")) {
    nav.setAttribute("aria-label", nav.querySelector(".md-nav__title").textContent.trim());
    nav.removeAttribute("aria-labelledby");
  }
  for (const nav of document.querySelectorAll(".md-code__nav")) nav.role = "none";
  for (const head of document.querySelectorAll("th:empty")) {
    head.replaceWith(document.createElement("td"));
  }
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) table.tabIndex = 0;
  // Long names in tables break after a mark, and not in a word.
  for (const code of document.querySelectorAll(".md-typeset td code")) {
    if (code.children.length) continue;
    if (/^--[\w-]+$/.test(code.textContent)) code.style.whiteSpace = "nowrap";
    else code.innerHTML = code.innerHTML.replace(/[/_.:(=,[|]+(?=[\w"])/g, "$&<wbr>");
  }
});
