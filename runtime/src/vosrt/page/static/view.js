// The frame with its objects: fetches pictures and labels, draws them, and turns pointers into marks.

import { get } from "./api.js";

const PICTURES = 48;
const LABELS = 160;
const HANDLE = 12; // pixels of the screen

class Cache {
  constructor(most) {
    this.most = most;
    this.items = new Map();
  }
  get(key) {
    const item = this.items.get(key);
    if (item !== undefined) {
      this.items.delete(key);
      this.items.set(key, item);
    }
    return item;
  }
  set(key, item) {
    this.items.set(key, item);
    while (this.items.size > this.most) this.items.delete(this.items.keys().next().value);
  }
  delete(key) {
    this.items.delete(key);
  }
  clear() {
    this.items.clear();
  }
}

export class View {
  constructor(canvas, on) {
    this.canvas = canvas;
    this.on = on; // what pointers did: click, box, brush, polygon
    this.pictures = new Cache(PICTURES);
    this.labels = new Cache(LABELS);
    this.frame = 0;
    this.shown = null;
    this.clip = null;
    this.objects = new Map();
    this.marks = [];
    this.why = null; // what a pixel was read from
    this.tool = "click";
    this.positive = true;
    this.radius = 16;
    this.drawing = null;
    this.pointer = null;
    this.tint = null;
    new ResizeObserver(() => this.draw()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("pointercancel", () => this.cancel());
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.draw(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.closePolygon());
  }

  reset(clip) {
    this.clip = clip;
    this.pictures.clear();
    this.labels.clear();
    this.shown = null;
    this.tint = null;
    this.why = null;
    this.frame = -1;
    this.cancel();
  }

  // The newest picture of a live source, which is no frame yet.
  live(picture) {
    this.frame = -1;
    this.shown = picture;
    this.tint = this.layer = null;
    this.draw();
  }

  changed(frames) {
    if (frames === null) this.labels.clear();
    else for (const each of frames) this.labels.delete(each);
    if (frames === null || frames.includes(this.frame)) this.refresh();
  }

  async show(frame) {
    if (!this.clip) return;
    if (frame !== this.frame && this.drawing) this.cancel();
    this.frame = frame;
    await this.refresh();
  }

  async refresh() {
    const frame = this.frame;
    const clip = this.clip;
    if (!clip || frame < 0) return;
    try {
      const [picture, labels] = await Promise.all([this.picture(frame), this.label(frame)]);
      if (clip !== this.clip || frame !== this.frame) return;
      this.shown = picture;
      this.tint = labels;
      this.paintTint();
      this.draw();
    } catch {
      // the next change asks again
    }
  }

  async picture(frame) {
    const known = this.pictures.get(frame);
    if (known) return known;
    const loading = get(`/api/frame/${frame}`).then(async (answer) => createImageBitmap(await answer.blob()));
    this.pictures.set(frame, loading);
    loading.catch(() => this.pictures.delete(frame));
    return loading;
  }

  async label(frame) {
    const known = this.labels.get(frame);
    if (known !== undefined) return known;
    const loading = get(`/api/labels/${frame}`).then(async (answer) => {
      if (answer.status === 204) return null;
      const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(bitmap, 0, 0);
      const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
      const ids = new Uint8Array(bitmap.width * bitmap.height);
      for (let i = 0; i < ids.length; i++) ids[i] = pixels[4 * i];
      return { ids, width: bitmap.width, height: bitmap.height };
    });
    this.labels.set(frame, loading);
    loading.catch(() => this.labels.delete(frame));
    return loading;
  }

  // Colour the labels once per change, not once per drawing: a light tint and a strong outline.
  paintTint() {
    this.layer = null;
    if (!this.tint) return;
    const { ids, width, height } = this.tint;
    const image = new ImageData(width, height);
    const words = new Uint32Array(image.data.buffer);
    const fill = new Uint32Array(256);
    const line = new Uint32Array(256);
    for (const [id, object] of this.objects) {
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(object.colour.slice(at, at + 2), 16));
      const word = red | (green << 8) | (blue << 16);
      fill[id] = ((word | (id === this.chosen ? 0x78000000 : 0x60000000)) >>> 0);
      line[id] = ((word | 0xff000000) >>> 0);
    }
    const thick = Math.max(1, Math.round(height / 400));
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        const id = ids[i];
        if (!id) continue;
        const edge = x < thick || y < thick || x >= width - thick || y >= height - thick
          || ids[i - thick] !== id || ids[i + thick] !== id || ids[i - thick * width] !== id || ids[i + thick * width] !== id;
        words[i] = edge ? line[id] : fill[id];
      }
    }
    this.layer = new OffscreenCanvas(width, height);
    this.layer.getContext("2d").putImageData(image, 0, 0);
  }

  restyle() {
    this.paintTint();
    this.draw();
  }

  // Where the frame lies on the canvas, in pixels of the screen.
  place() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (!this.clip) return { x: 0, y: 0, scale: 1 };
    const margin = width > 600 ? 16 : 0;
    const scale = Math.max(0.01, Math.min((width - 2 * margin) / this.clip.width, (height - 2 * margin) / this.clip.height));
    return { x: (width - this.clip.width * scale) / 2, y: (height - this.clip.height * scale) / 2, scale };
  }

  draw() {
    cancelAnimationFrame(this.waiting);
    this.waiting = requestAnimationFrame(() => this.drawNow());
  }

  drawNow() {
    const ratio = devicePixelRatio || 1;
    const { clientWidth, clientHeight } = this.canvas;
    if (this.canvas.width !== Math.round(clientWidth * ratio)) this.canvas.width = Math.round(clientWidth * ratio);
    if (this.canvas.height !== Math.round(clientHeight * ratio)) this.canvas.height = Math.round(clientHeight * ratio);
    const context = this.canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, clientWidth, clientHeight);
    if (!this.shown || !this.clip) return;
    const { x, y, scale } = this.place();
    const [width, height] = [this.clip.width * scale, this.clip.height * scale];
    context.imageSmoothingQuality = "high";
    context.drawImage(this.shown, x, y, width, height);
    if (this.layer) context.drawImage(this.layer, x, y, width, height);
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    for (const mark of this.marks) this.drawMark(context, mark);
    if (this.why) this.drawWhy(context, this.why);
    this.drawDrawing(context);
    context.restore();
  }

  drawMark(context, { object, points, box }) {
    const colour = this.objects.get(object)?.colour ?? "#888";
    if (box && object === this.chosen) {
      const [[x, y], [right, bottom]] = [this.toScreen([box[0], box[1]]), this.toScreen([box[0] + box[2], box[1] + box[3]])];
      stroke(context, colour, [6, 4], () => context.rect(x, y, right - x, bottom - y));
    }
    for (const [px, py, positive] of points) {
      const [x, y] = this.toScreen([px + 0.5, py + 0.5]);
      context.beginPath();
      context.arc(x, y, 6, 0, 7);
      context.fillStyle = positive ? colour : "#fff";
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = positive ? "#fff" : colour;
      context.stroke();
      context.beginPath();
      context.moveTo(x - 3, y);
      context.lineTo(x + 3, y);
      if (positive) {
        context.moveTo(x, y - 3);
        context.lineTo(x, y + 3);
      }
      context.lineWidth = 1.6;
      context.stroke();
    }
  }

  drawWhy(context, why) {
    for (const vote of why.votes) {
      if (vote.frame !== this.frame || vote.frame === why.frame) continue;
      const colour = this.objects.get(vote.object)?.colour ?? "#fff";
      stroke(context, colour, [], () => context.arc(...this.toScreen([vote.x + 0.5, vote.y + 0.5]), 4 + 16 * Math.sqrt(vote.weight), 0, 7));
    }
    if (this.frame !== why.frame) return;
    const [x, y] = this.toScreen(why.pixel.map((each) => each + 0.5));
    stroke(context, "#fff", [], () => {
      for (const [dx, dy] of [[1, 0], [0, 1]]) {
        for (const sign of [-1, 1]) {
          context.moveTo(x + 4 * sign * dx, y + 4 * sign * dy);
          context.lineTo(x + 13 * sign * dx, y + 13 * sign * dy);
        }
      }
    });
  }

  drawDrawing(context) {
    const colour = this.positive ? this.objects.get(this.chosen)?.colour ?? "#2563eb" : "#ff5a4d";
    const drawing = this.drawing;
    const radius = this.radius * this.place().scale;
    if (drawing?.tool === "brush") {
      context.globalAlpha = 0.6;
      context.lineCap = context.lineJoin = "round";
      context.lineWidth = 2 * radius;
      context.strokeStyle = drawing.positive ? colour : "#ff5a4d";
      context.beginPath();
      drawing.points.forEach((each, i) => context[i ? "lineTo" : "moveTo"](...this.toScreen(each)));
      if (drawing.points.length === 1) context.lineTo(...this.toScreen(drawing.points[0]));
      context.stroke();
      context.globalAlpha = 1;
    } else if (drawing?.tool === "box") {
      const [[x, y], [right, bottom]] = [this.toScreen(drawing.from), this.toScreen(drawing.to)];
      stroke(context, colour, [6, 4], () => context.rect(x, y, right - x, bottom - y));
    } else if (drawing?.tool === "polygon") {
      const points = [...drawing.points, ...(this.pointer ? [this.pointer] : [])].map((each) => this.toScreen(each));
      stroke(context, colour, [], () => points.forEach((each, i) => context[i ? "lineTo" : "moveTo"](...each)));
      context.fillStyle = "#fff";
      for (const [i, each] of drawing.points.entries()) {
        context.beginPath();
        context.arc(...this.toScreen(each), i ? 3.5 : 6, 0, 7);
        context.fill();
        context.strokeStyle = colour;
        context.stroke();
      }
    }
    if (this.tool === "brush" && this.pointer) stroke(context, "#fff", [], () => context.arc(...this.toScreen(this.pointer), Math.max(2, radius), 0, 7));
  }

  toScreen([px, py]) {
    const { x, y, scale } = this.place();
    return [x + px * scale, y + py * scale];
  }

  toFrame(event) {
    const { x, y, scale } = this.place();
    const bounds = this.canvas.getBoundingClientRect();
    return [(event.clientX - bounds.left - x) / scale, (event.clientY - bounds.top - y) / scale];
  }

  isInside([x, y]) {
    return this.clip && x >= 0 && y >= 0 && x < this.clip.width && y < this.clip.height;
  }

  clamp([x, y]) {
    return [Math.min(Math.max(x, 0), this.clip.width), Math.min(Math.max(y, 0), this.clip.height)];
  }

  down(event) {
    if (!this.clip || !this.shown || event.button > 2 || event.button === 1) return;
    const point = this.toFrame(event);
    const positive = event.button === 2 || event.altKey ? !this.positive : this.positive;
    if (this.isInside(point)) this.on.begin();
    if (this.tool === "polygon") return this.corner(point, event.button === 2);
    if (!this.isInside(point)) return undefined;
    this.canvas.setPointerCapture(event.pointerId);
    if (this.tool === "click" || this.tool === "why") this.drawing = { tool: "click", at: [event.clientX, event.clientY], point, positive };
    if (this.tool === "box") this.drawing = { tool: "box", from: point, to: point };
    if (this.tool === "brush") this.drawing = { tool: "brush", points: [point], positive };
    return this.draw();
  }

  corner(point, last) {
    if (last) return this.closePolygon();
    if (!this.drawing) {
      if (!this.isInside(point)) return undefined;
      this.drawing = { tool: "polygon", points: [] };
    }
    const { points } = this.drawing;
    if (points.length > 2) {
      const [a, b] = [this.toScreen(points[0]), this.toScreen(point)];
      if (Math.hypot(a[0] - b[0], a[1] - b[1]) < HANDLE) return this.closePolygon();
    }
    points.push(this.clamp(point));
    return this.draw();
  }

  closePolygon() {
    if (this.drawing?.tool !== "polygon") return;
    const { points } = this.drawing;
    this.drawing = null;
    const corners = points.filter((each, i) => !i || Math.hypot(each[0] - points[i - 1][0], each[1] - points[i - 1][1]) > 0.5);
    if (corners.length > 2) this.on.polygon(corners, this.positive);
    this.draw();
  }

  move(event) {
    if (!this.clip) return;
    this.pointer = event.pointerType === "touch" ? null : this.toFrame(event);
    const drawing = this.drawing;
    if (drawing?.tool === "box") drawing.to = this.clamp(this.toFrame(event));
    if (drawing?.tool === "brush") for (const each of event.getCoalescedEvents?.() ?? [event]) drawing.points.push(this.toFrame(each));
    if (drawing || this.tool === "brush") this.draw();
  }

  up(event) {
    const drawing = this.drawing;
    if (!drawing || drawing.tool === "polygon") return;
    this.drawing = null;
    if (drawing.tool === "click") {
      const moved = Math.hypot(event.clientX - drawing.at[0], event.clientY - drawing.at[1]);
      if (moved < HANDLE) this.on[this.tool === "why" ? "why" : "click"](drawing.point.map(Math.floor), drawing.positive);
    } else if (drawing.tool === "box") {
      const [x, y] = [0, 1].map((i) => Math.round(Math.min(drawing.from[i], drawing.to[i])));
      const [right, bottom] = [0, 1].map((i) => Math.round(Math.max(drawing.from[i], drawing.to[i])));
      if (right - x > 2 && bottom - y > 2) this.on.box([x, y, right - x, bottom - y]);
    } else this.on.brush(drawing.points, this.radius, drawing.positive);
    this.draw();
  }

  cancel() {
    const was = this.drawing !== null;
    this.drawing = null;
    this.draw();
    return was;
  }
}

function stroke(context, colour, dashes, path) {
  for (const [style, width] of [["rgb(0 0 0 / .45)", 3.5], [colour, 2]]) {
    context.beginPath();
    context.setLineDash(dashes);
    path();
    context.lineWidth = width;
    context.strokeStyle = style;
    context.stroke();
  }
  context.setLineDash([]);
}
