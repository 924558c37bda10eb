// The page: holds what the server says, and turns buttons and keys into requests.

import { get, listen, post, upload } from "./api.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";

const at = (id) => document.getElementById(id);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const narrow = matchMedia("(max-width: 820px)"); // as in style.css
const WAIT_MS = 350; // a frame that is looked at so long is encoded, so that the first click is quick

const page = { state: null, frame: 0, chosen: 0, playing: false, watching: false, owner: true, asked: 0, run: 0, downloaded: "", folder: "", sent: Promise.resolve(), live: false, looking: false, number: 0, frozen: null, frozenAt: -1 };
const rows = new Map();

const view = new View(at("picture"), {
  begin: () => page.live && freeze(),
  why: ([x, y]) => why(x, y),
  click: (point, positive) => mark("click", { x: point[0], y: point[1], positive }, !positive),
  box: (box) => mark("click", { box }),
  brush: (points, radius, positive) => mark("paint", { points, radius, add: positive }, !positive),
  polygon: (points, positive) => mark("paint", { points, add: positive }, !positive),
});
const timeline = new Timeline(at("timeline"), (frame) => { pause(); seek(frame); });
timeline.rows = rows;

let toastTimer = 0;
function toast(message, bad = false) {
  const element = at("toast");
  element.textContent = message;
  element.className = bad ? "shown bad" : "shown";
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.className = ""; }, bad ? 6000 : 3500);
}

// Requests go one after the other, in the order of what the person did.
function send(path, body, waiting = "") {
  const sent = page.sent.then(async () => {
    page.asked++;
    if (waiting) busy(waiting);
    try {
      return await post(path, body);
    } catch (error) {
      if (error.status === 401) at("locked").showModal();
      else toast(error.message, true);
      return null;
    } finally {
      if (!--page.asked) busy("");
    }
  });
  page.sent = sent;
  return sent;
}

let busyTimer = 0;
function busy(text) {
  clearTimeout(busyTimer);
  if (!text) { at("busy").hidden = true; return; }
  at("busy").lastElementChild.textContent = text;
  busyTimer = setTimeout(() => { at("busy").hidden = false; }, 250);
}

async function mark(path, body, removes = false) {
  pause();
  await page.frozen;
  const frame = page.frame;
  if (!page.chosen) {
    if (removes) return toast("Click the object first; remove from it afterwards");
    const added = await send("object", {});
    if (!added) return undefined;
    page.chosen = added.object;
  }
  const loading = page.state?.model.state === "loading";
  return send(path, { frame, object: page.chosen, ...body }, loading ? "Loading the network …" : "Looking …");
}

// -- frames ------------------------------------------------------------------------------------------------------------

let prepareTimer = 0;
function seek(frame) {
  const clip = page.state?.clip;
  if (!clip || !clip.frames) return;
  page.live = false;
  page.frame = Math.min(Math.max(frame, clip.oldest), clip.frames - 1);
  timeline.frame = page.frame;
  timeline.draw();
  showMarks();
  view.show(page.frame);
  at("position").textContent = `${page.frame + 1} / ${clip.expected}`;
  showFrame();
  clearTimeout(prepareTimer);
  if (!page.playing && !page.watching && page.owner) prepareTimer = setTimeout(() => page.owner && post("prepare", { frame: page.frame }).catch(() => {}), WAIT_MS);
}

function pause() {
  page.playing = page.watching = false;
  at("play").firstElementChild.firstElementChild.setAttribute("href", "#i-play");
}

function play() {
  const clip = page.state?.clip;
  if (!clip) return;
  if (page.live) { freeze(); return; }
  if (page.playing) { pause(); seek(page.frame); return; }
  if (page.frame >= clip.frames - 1) seek(0);
  page.playing = true;
  at("play").firstElementChild.firstElementChild.setAttribute("href", "#i-pause");
  let [from, began] = [page.frame, performance.now()];
  const tick = async () => {
    if (!page.playing) return;
    const next = from + Math.floor(((performance.now() - began) * clip.fps) / 1000);
    if (next > page.frame) {
      const last = page.state.clip.frames - 1;
      // Wait for pictures rather than jump: a clip that loads slowly plays slowly.
      await Promise.all([view.picture(Math.min(next, last)), view.label(Math.min(next, last))]).catch(() => {});
      if (!page.playing) return;
      seek(next);
      for (let ahead = 1; ahead < 6; ahead++) if (next + ahead <= last) view.picture(next + ahead).catch(() => {});
      if (next >= last) { pause(); return; }
      if (performance.now() - began > ((next + 2 - from) * 1000) / clip.fps) [from, began] = [next, performance.now()];
    }
    requestAnimationFrame(tick);
  };
  tick();
}

// -- live --------------------------------------------------------------------------------------------------------------

// The newest picture, asked for when the one before is drawn: a slow connection sees fewer pictures, never old ones.
async function look() {
  if (page.looking) return;
  page.looking = true;
  const clip = page.state.clip.number;
  page.number = 0;
  while (page.live && page.state.clip?.number === clip) {
    try {
      const answer = await get(`/api/live?after=${page.number}`);
      if (answer.status === 204) continue;
      const picture = await createImageBitmap(await answer.blob());
      if (!page.live) break;
      page.number = Number(answer.headers.get("X-Vosrt-Number"));
      view.live(picture);
      await new Promise(requestAnimationFrame);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  page.looking = false;
  if (page.live && page.state.clip?.live) look(); // another source was opened meanwhile
}

function goLive() {
  if (!page.state?.clip?.live || page.live) return;
  pause();
  page.live = true;
  send("live");
  view.why = null;
  look();
  showAll();
}

// What came while a picture was frozen is there to catch up through, not to look at.
function endLive(clip) {
  let last = page.frozenAt;
  for (const frame of rows.keys()) if (frame > last) last = frame;
  clip.frames = clip.expected = last + 1;
}

// Stop at the picture that is shown: it becomes a frame, which can be marked.
function freeze() {
  page.live = false;
  page.frozen = send("freeze", { number: page.number }).then((done) => {
    const clip = page.state.clip;
    if (!done || !clip) return;
    page.frozenAt = done.frame;
    endLive(clip);
    view.frame = done.frame; // what is being drawn goes on there
    seek(done.frame);
    showAll();
  });
  return page.frozen;
}

// -- why ---------------------------------------------------------------------------------------------------------------

function why(x, y) {
  pause();
  if (!rows.has(page.frame)) toast("Nothing was followed to this frame yet");
  else send("explain", { frame: page.frame, x, y }, page.state.model.state === "loading" ? "Loading the network …" : "");
}

function showWhy(found) {
  view.why = found;
  at("why").hidden = !found;
  view.draw();
  if (!found) return;
  const name = (id) => (id ? page.state.objects.find((each) => each.object_id === id)?.name ?? `Object ${id}` : "Background");
  const shares = new Map();
  let total = 0;
  for (const vote of found.votes) {
    const key = `${vote.frame},${vote.object}`;
    shares.set(key, (shares.get(key) ?? 0) + vote.weight);
    total += vote.weight;
  }
  at("why-title").textContent = `${name(found.object)}, ${Math.round(100 * found.confidence)} % sure`;
  const lines = [...shares].sort((a, b) => b[1] - a[1]).slice(0, 6).map(([key, share]) => {
    const [frame, id] = key.split(",").map(Number);
    const button = document.createElement("button");
    button.title = `${name(id)} in frame ${frame + 1}`;
    const [label, bar, number] = ["span", "meter", "span"].map((each) => document.createElement(each));
    label.textContent = `Frame ${frame + 1} · ${name(id)}`;
    bar.value = share / total;
    number.textContent = `${Math.round((100 * share) / total)} %`;
    button.append(label, number, bar);
    button.onclick = () => { pause(); seek(frame); };
    return button;
  });
  at("why-votes").replaceChildren(...lines);
}

// -- what the server says ----------------------------------------------------------------------------------------------

function onLine(line) {
  if (line.owner !== undefined) {
    page.owner = line.owner;
    if (line.owner) at("other").close();
    else if (!at("other").open) at("other").showModal();
  }
  if (line.frames) {
    if (line.all) rows.clear();
    for (const [frame, row] of Object.entries(line.frames)) {
      if (row.length) rows.set(Number(frame), row);
      else rows.delete(Number(frame));
    }
    view.changed(line.all ? null : Object.keys(line.frames).map(Number));
    timeline.draw();
  }
  if (line.state) onState(line.state);
  if (line.frames) { showObjects(); showFrame(); }
}

function onState(state) {
  const before = page.state;
  page.state = state;
  const clip = state.clip;
  const isNew = clip && clip.number !== before?.clip?.number;
  if (isNew) {
    [page.frame, page.chosen, page.frozenAt] = [0, 0, -1];
    pause();
    view.reset(clip);
    showWhy(null);
    page.live = false;
    at("welcome").hidden = true;
    at("upload").hidden = true;
  }
  if (clip?.live) endLive(clip);
  if (!clip && !before) welcome();
  view.objects = new Map(state.objects.map((each) => [each.object_id, each]));
  if (!view.objects.has(page.chosen)) page.chosen = state.objects.at(-1)?.object_id ?? 0;
  view.chosen = page.chosen;
  timeline.objects = state.objects;
  timeline.count = clip?.expected ?? 0;
  timeline.kept = clip?.frames ?? 0;
  timeline.oldest = clip?.oldest ?? 0;
  at("clip-name").textContent = clip?.name ?? "Open a clip";
  document.title = clip ? `${clip.name} – vosrt` : "vosrt";
  at("undo").disabled = !state.can.undo;
  at("redo").disabled = !state.can.redo;
  const task = state.task;
  const running = task.kind !== "idle";
  if (task.kind === "follow" && page.watching && task.at !== page.frame) seek(task.at);
  else if (isNew && clip.live) goLive();
  else if (!clip?.live && (isNew || (clip && before?.clip?.frames === 0))) seek(0);
  at("stop").hidden = !running;
  at("follow").hidden = running;
  const total = clip?.expected ?? 0;
  at("progress").textContent = task.live?.p50_ms ? (narrow.matches ? `${Math.round(task.live.p50_ms)} ms behind` : `${task.live.fps.toFixed(1)} fps · ${Math.round(task.live.p50_ms)} ms behind (p95 ${Math.round(task.live.p95_ms)} ms)`) : task.live ? "Catching up …" : task.kind === "follow" ? `Following … frame ${task.at + 1}` : task.kind === "explain" ? "Reading its memory …" : task.kind === "export" ? `Writing … ${Math.round((100 * task.at) / Math.max(1, total))} %` : clip && !clip.decoded ? `Opening … ${plural(clip.frames, "frame")}` : "";
  if (before && !running && task.run !== page.run) ended(task, task.was); // a short run may never be seen running
  if (!running) page.run = task.run;
  if (clip?.note && clip.note !== before?.clip?.note) toast(clip.note);
  if (state.model.state === "failed" && before?.model.state !== "failed") toast(state.model.error, true);
  showMarks();
  view.restyle();
  timeline.draw();
  showObjects();
  showAll();
}

function showAll() {
  const clip = page.state?.clip;
  at("live").hidden = !clip?.live;
  at("live").setAttribute("aria-pressed", String(page.live || Boolean(page.state?.task.live && page.watching)));
  at("live").title = page.live ? "Freeze the picture (L)" : "Show the live picture (L)";
  if (clip) at("position").textContent = page.live ? "" : `${page.frame + 1} / ${clip.expected}`;
  showFrame();
}

function ended(task, kind) {
  if (page.watching && task.at !== undefined) seek(task.at);
  page.watching = false;
  if (task.error) toast(task.error, true);
  else if (task.download && task.download !== page.downloaded) {
    page.downloaded = task.download;
    const link = document.createElement("a");
    link.href = task.download;
    link.download = "";
    link.click();
    toast("Exported");
  } else if (task.explained) showWhy(task.explained);
  else if (kind === "follow") toast(task.live?.p50_ms ? `Followed ${plural(task.followed, "frame")} live, ${Math.round(task.live.p50_ms)} ms behind` : task.stopped ? `Stopped after ${plural(task.followed, "frame")}` : `Followed through ${plural(task.followed, "frame")}`);
}

function showMarks() {
  view.marks = (page.state?.clicks ?? []).filter((each) => each.frame === page.frame);
  view.chosen = page.chosen;
}

function showObjects() {
  const list = at("objects");
  const objects = page.state?.objects ?? [];
  if (list.contains(document.activeElement) && document.activeElement.classList.contains("name")) return; // being renamed
  const row = new Map((rows.get(page.frame)?.[1] ?? []).map(([id, area, confidence]) => [id, { area, confidence }]));
  list.replaceChildren(...objects.map((object) => {
    const item = document.createElement("li");
    item.dataset.id = object.object_id;
    item.setAttribute("aria-selected", String(object.object_id === page.chosen));
    const colour = Object.assign(document.createElement("input"), { type: "color", value: object.colour, title: "Colour" });
    colour.onchange = () => send("object", { object: object.object_id, colour: colour.value });
    const name = Object.assign(document.createElement("input"), { className: "name", value: object.name, maxLength: 60, title: "Name" });
    name.setAttribute("aria-label", "Name");
    name.onchange = () => name.value.trim() && send("object", { object: object.object_id, name: name.value });
    name.onkeydown = (event) => { if (event.key === "Enter") name.blur(); event.stopPropagation(); };
    const here = row.get(object.object_id);
    const state = document.createElement("span");
    state.className = here && !here.area ? "state lost" : "state";
    state.textContent = !here ? "" : here.area ? `${Math.round(100 * here.confidence)} %` : "lost";
    state.title = here?.area ? `${here.area} pixels; how sure the masks are` : "";
    const remove = Object.assign(document.createElement("button"), { className: "icon delete", title: "Delete", innerHTML: '<svg><use href="#i-trash"/></svg>' });
    remove.setAttribute("aria-label", `Delete ${object.name}`);
    remove.onclick = (event) => { event.stopPropagation(); send("remove", { object: object.object_id }); };
    item.append(colour, name, state, remove);
    item.onclick = () => choose(object.object_id);
    return item;
  }));
}

function choose(id) {
  page.chosen = id;
  for (const item of at("objects").children) item.setAttribute("aria-selected", String(Number(item.dataset.id) === id));
  showMarks();
  view.restyle();
}

function showFrame() {
  const row = page.live ? undefined : rows.get(page.frame);
  const visible = row?.[1].some(([, area]) => area) ?? false;
  const idle = page.state?.task.kind === "idle";
  at("frame-note").textContent = !page.state?.clip ? "" : page.live ? "Click the object: the picture freezes there." : !row ? "Nothing is known here yet." : row[0] ? "A reference: following starts from and passes through it." : "Found by following. Click to correct it, or accept it.";
  at("accept").disabled = !row || !page.state?.clip;
  at("accept").classList.toggle("on", Boolean(row?.[0]));
  at("accept").lastElementChild.textContent = row?.[0] ? "Accepted" : "Accept";
  at("follow").disabled = !visible || !idle;
  at("back").disabled = !visible || !idle || page.frame === 0;
  at("export").disabled = !rows.size || !idle;
  const hint = at("hint");
  const texts = { click: "Click the object", box: "Draw a box around the object", brush: "Paint over the object", polygon: "Click its corners; the first one closes", why: "Click a pixel to see what its label was read from" };
  hint.textContent = texts[view.tool];
  if (page.live && view.tool !== "why") hint.textContent += "; the picture freezes there";
  hint.hidden = !page.state?.clip || (rows.size > 0 && !page.live) || !at("welcome").hidden;
}

// -- opening -----------------------------------------------------------------------------------------------------------

function welcome() {
  at("welcome").hidden = false;
  at("welcome-close").hidden = !page.state?.clip;
  list(page.folder);
  showFrame();
}

async function list(folder) {
  try {
    const found = await (await get(`/api/files?folder=${encodeURIComponent(folder)}`)).json();
    page.folder = folder;
    at("folder").textContent = found.folder;
    const lines = found.entries.map((entry) => line(entry.name, entry.folder ? "folder" : "film", () => (entry.folder ? list(entry.path) : open(entry.path)), entry.folder ? () => open(entry.path) : null));
    if (found.above !== null) lines.unshift(line("..", "folder", () => list(found.above === "." ? "" : found.above)));
    if (found.source) lines.unshift(line(found.source, "live", () => send("open", { source: true }, "Connecting …")));
    if (!lines.length) lines.push(Object.assign(document.createElement("li"), { className: "empty", textContent: "No videos here." }));
    at("files").replaceChildren(...lines);
  } catch (error) {
    if (error.status !== 401) toast(error.message, true);
  }
}

function line(name, icon, onClick, onUse = null) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.innerHTML = `<svg><use href="#i-${icon}"/></svg><span></span>`;
  button.lastElementChild.textContent = name;
  button.onclick = onClick;
  item.append(button);
  if (onUse) {
    const use = Object.assign(document.createElement("button"), { className: "use", textContent: "Open frames", title: "Open the images of this folder as a clip" });
    use.onclick = onUse;
    item.append(use);
  }
  return item;
}

const open = (path) => send("open", { path }, "Opening …");

async function take(file) {
  if (!file) return;
  const box = at("upload");
  box.hidden = false;
  box.lastElementChild.textContent = file.name;
  try {
    await upload(file, (share) => { box.firstElementChild.value = share; });
  } catch (error) {
    toast(error.message, true);
  }
  box.hidden = true;
  at("file").value = "";
}

// -- buttons and keys --------------------------------------------------------------------------------------------------

function tool(name) {
  view.tool = name;
  view.cancel();
  for (const button of document.querySelectorAll("[data-tool]")) button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  at("brush-size").hidden = name !== "brush";
  showFrame();
}

function sign(positive) {
  view.positive = positive;
  at("plus").setAttribute("aria-pressed", String(positive));
  at("minus").setAttribute("aria-pressed", String(!positive));
}

function brush(radius) {
  view.radius = Math.min(Math.max(radius, 2), 80);
  at("brush-size").firstElementChild.value = view.radius;
  view.draw();
}

function follow(direction) {
  if (page.state?.task.kind !== "idle") return;
  pause();
  page.watching = true;
  send("follow", { frame: page.frame, direction }, page.state.model.state === "loading" ? "Loading the network …" : "");
}

function stop() {
  if (view.cancel()) return;
  if (view.why) { showWhy(null); return; }
  page.watching = false;
  if (page.state?.task.kind !== "idle") send("stop");
}

async function exportAll() {
  const dialog = at("export-dialog");
  if (!rows.size || dialog.open) return;
  dialog.returnValue = "";
  dialog.showModal();
}

at("export-dialog").addEventListener("close", (event) => {
  if (event.target.returnValue !== "go") return;
  const kinds = [...event.target.querySelectorAll("input:checked")].map((each) => each.name);
  send("export", { kinds });
});
for (const button of document.querySelectorAll("[data-tool]")) button.onclick = () => tool(button.dataset.tool);
at("plus").onclick = () => sign(true);
at("minus").onclick = () => sign(false);
at("brush-size").firstElementChild.oninput = (event) => brush(Number(event.target.value));
at("play").onclick = play;
at("previous").onclick = () => { pause(); seek(page.frame - 1); };
at("next").onclick = () => { pause(); seek(page.frame + 1); };
at("follow").onclick = () => follow("forward");
at("live").onclick = () => {
  if (!page.state?.task.live) return page.live ? freeze() : goLive();
  if (page.watching) return stop();
  page.watching = true; // it was followed all the time: look there again
  return seek(page.state.task.at);
};
at("why-close").onclick = () => showWhy(null);
at("back").onclick = () => follow("backward");
at("stop").onclick = stop;
at("undo").onclick = () => send("undo");
at("redo").onclick = () => send("redo");
at("accept").onclick = () => send("accept", { frame: page.frame, marked: !rows.get(page.frame)?.[0] });
at("add").onclick = addObject;
at("export").onclick = exportAll;
at("keys").onclick = () => at("keys-dialog").showModal();
at("open").onclick = welcome;
at("welcome-close").onclick = () => { at("welcome").hidden = true; showFrame(); };
at("take").onclick = async () => { await post("take"); };
at("file").onchange = (event) => take(event.target.files[0]);
at("other").addEventListener("cancel", (event) => event.preventDefault());
at("locked").addEventListener("cancel", (event) => event.preventDefault());
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}

async function addObject() {
  const added = await send("object", {});
  if (added) choose(added.object);
}

const keys = {
  " ": play,
  ArrowLeft: (event) => { pause(); seek(page.frame - (event.shiftKey ? 10 : 1)); },
  ArrowRight: (event) => { pause(); seek(page.frame + (event.shiftKey ? 10 : 1)); },
  Home: () => { pause(); seek(0); },
  End: () => { pause(); seek(Infinity); },
  c: () => tool("click"), b: () => tool("box"), r: () => tool("brush"), p: () => tool("polygon"), w: () => tool("why"),
  l: () => at("live").hidden || at("live").click(),
  x: () => sign(!view.positive),
  "[": () => brush(view.radius * 0.8), "]": () => brush(view.radius * 1.25),
  n: addObject,
  f: (event) => follow(event.shiftKey ? "backward" : "forward"),
  a: () => at("accept").disabled || at("accept").click(),
  e: exportAll, o: welcome, Escape: stop, Enter: () => view.closePolygon(), "?": () => at("keys-dialog").showModal(),
};
document.addEventListener("keydown", (event) => {
  const field = event.target.closest?.("input, dialog");
  if (field && field.type !== "checkbox" && field.type !== "range" && field.type !== "color") return;
  if (document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    send(key === "y" || event.shiftKey ? "redo" : "undo");
    return;
  }
  if (event.altKey) return;
  const chosen = page.state?.objects[Number(key) - 1];
  const action = keys[key] ?? (/^[1-9]$/.test(key) && chosen ? () => choose(chosen.object_id) : null);
  if (!action || (event.target.closest?.("button") && (key === " " || key === "Enter"))) return;
  event.preventDefault();
  action(event);
});

let lost = false;
listen((line) => { if (lost) { lost = false; toast("Connected again"); } onLine(line); }, (error) => {
  if (error.status === 401) { if (!at("locked").open) at("locked").showModal(); }
  else if (!lost) { lost = true; toast("The connection to vos-run ui ended; waiting for it …", true); }
});
