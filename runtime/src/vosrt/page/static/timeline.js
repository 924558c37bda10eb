// A lane per object: its height is the area, its strength the confidence, gaps are frames without it.

const TOP = 14; // pixels above the lanes, for the marked frames

export class Timeline {
  constructor(element, onSeek) {
    this.element = element;
    this.canvas = element.querySelector("canvas");
    this.rows = new Map();
    this.objects = [];
    this.count = 0;
    this.oldest = 0;
    this.kept = 0;
    this.frame = 0;
    new ResizeObserver(() => this.draw()).observe(element);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    const seek = (event) => {
      const bounds = element.getBoundingClientRect();
      if (this.count) onSeek(Math.round(this.oldest + ((event.clientX - bounds.left) / bounds.width) * (this.count - this.oldest) - 0.5));
    };
    element.addEventListener("mousedown", (event) => event.preventDefault()); // a click takes no focus
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      seek(event);
    });
    element.addEventListener("pointermove", (event) => {
      if (event.buttons) seek(event);
    });
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth: width } = this.element;
    const lanes = Math.max(1, this.objects.length);
    const height = TOP + Math.min(lanes, 5) * (lanes > 2 ? 20 : 26) + 6;
    if (this.element.clientHeight !== height) this.element.style.height = `${height}px`;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const style = getComputedStyle(this.element);
    const [lane, ink, accent, soft] = ["--lane", "--ink", "--accent", "--soft"].map((each) => style.getPropertyValue(each));
    const tall = (height - TOP - 2) / lanes;
    const wide = width / Math.max(1, this.count - this.oldest);
    for (let i = 0; i < lanes; i++) {
      context.fillStyle = lane;
      context.beginPath();
      context.roundRect(0, TOP + i * tall + 1, width, tall - 2, 4);
      context.fill();
    }
    if (this.count > this.kept) {
      context.fillStyle = soft;
      context.globalAlpha = 0.18;
      const from = (this.kept - this.oldest) * wide;
      context.fillRect(from, TOP, width - from, height - TOP);
      context.globalAlpha = 1;
    }
    const largest = new Map();
    for (const [, [, objects]] of this.rows) for (const [id, area] of objects) largest.set(id, Math.max(area, largest.get(id) ?? 1));
    const lanesOf = new Map(this.objects.map((each, i) => [each.object_id, i]));
    const colours = new Map(this.objects.map((each) => [each.object_id, each.colour]));
    const order = [...this.rows.keys()].sort((a, b) => a - b);
    for (const number of order) {
      const [marked, objects] = this.rows.get(number);
      const frame = number - this.oldest;
      for (const [id, area, confidence] of objects) {
        const i = lanesOf.get(id);
        if (i === undefined) continue;
        const bottom = TOP + (i + 1) * tall - 1;
        const left = Math.round(frame * wide * ratio) / ratio; // whole pixels of the screen, so that bars touch
        const broad = Math.max(1, Math.round((frame + 1) * wide * ratio) / ratio - left);
        if (!area) {
          context.fillStyle = colours.get(id);
          context.globalAlpha = 0.5;
          context.fillRect(left, bottom - 2, broad, 1.5);
        } else {
          context.fillStyle = colours.get(id);
          context.globalAlpha = 0.25 + 0.75 * Math.min(1, Math.max(0, (confidence - 0.3) / 0.65));
          const size = Math.max(3, (tall - 4) * Math.sqrt(area / largest.get(id)));
          context.fillRect(left, bottom - size, broad, size);
        }
      }
      context.globalAlpha = 1;
      if (marked) {
        const x = (frame + 0.5) * wide;
        context.fillStyle = ink;
        context.beginPath();
        context.moveTo(x, 2);
        context.lineTo(x + 4.5, 6.5);
        context.lineTo(x, 11);
        context.lineTo(x - 4.5, 6.5);
        context.fill();
      }
    }
    if (this.count) {
      const x = Math.min(Math.max((this.frame - this.oldest + 0.5) * wide, 2), width - 2);
      context.fillStyle = accent;
      context.fillRect(x - 1, 0, 2, height);
      context.beginPath();
      context.arc(x, height - 4, 4, 0, 7);
      context.fill();
    }
    this.element.setAttribute("aria-valuemax", String(Math.max(0, this.count - 1)));
    this.element.setAttribute("aria-valuenow", String(this.frame));
  }
}
