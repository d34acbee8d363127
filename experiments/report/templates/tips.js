// Exact numbers of a mark on hover, focus and tap; arrow keys move among the marks of a picture.
const tip = document.getElementById("tip");
function show(mark) {
  tip.textContent = mark.getAttribute("aria-label");
  tip.style.display = "block";
  tip.style.left = "8px";  // at its full width, to be measured
  const box = mark.getBoundingClientRect(), room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const above = box.top > tip.offsetHeight + 12;
  tip.style.left = Math.max(8, Math.min(room, box.left + box.width / 2 - tip.offsetWidth / 2)) + scrollX + "px";
  tip.style.top = (above ? box.top - tip.offsetHeight - 6 : box.bottom + 6) + scrollY + "px";
}
function hide() { tip.style.display = "none"; }
for (const picture of document.querySelectorAll("svg")) {
  const marks = [...picture.querySelectorAll(".mark")];
  marks.forEach((mark, place) => {
    mark.querySelector("title").remove();
    mark.addEventListener("pointerenter", () => show(mark));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("click", () => show(mark));
    mark.addEventListener("focus", () => show(mark));
    mark.addEventListener("blur", hide);
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const next = marks[(place + step + marks.length) % marks.length];
      mark.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  });
}
