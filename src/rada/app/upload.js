// Sends dropped or chosen files one by one, so that neither side holds many of them at a time.
const role = props.role;
const say = element.querySelector('.rada-said');
const zone = element.querySelector('.rada-zone');
const AT_ONCE = 3;
let queue = [], sent = 0, failed = 0, total = 0, running = 0;

function tell() {
  if (!total) return;
  const done = sent + failed;
  say.textContent = done < total ? `Sending ${done + 1} of ${total} files …`
    : `${sent} of ${total} files sent.`;
}
async function next() {
  if (!queue.length) {
    if (!running) { tell(); total = sent = failed = 0; }
    return;
  }
  const item = queue.shift();
  running += 1;
  tell();
  try {
    const file = item.getFile ? await item.getFile() : item;
    const place = `/rada/images?role=${role}&name=${encodeURIComponent(file.name)}`;
    const answer = await fetch(place, { method: 'POST', body: file, credentials: 'same-origin' });
    if (answer.ok) sent += 1; else failed += 1;
  } catch (error) {
    failed += 1;
  }
  running -= 1;
  next();
}
function take(items) {
  queue.push(...items);
  total += items.length;
  for (let n = running; n < AT_ONCE; n += 1) next();
}
const usable = name => !name.startsWith('.');
async function walk(entry, found) {
  if (entry.isFile) {
    if (usable(entry.name)) found.push({ getFile: () => new Promise((yes, no) => entry.file(yes, no)) });
  } else if (usable(entry.name)) {
    const reader = entry.createReader();
    for (;;) {  // a reader hands out a hundred entries at a time
      const part = await new Promise((yes, no) => reader.readEntries(yes, no));
      if (!part.length) break;
      for (const child of part) await walk(child, found);
    }
  }
}
element.querySelectorAll('input[type=file]').forEach(input => {
  input.addEventListener('change', () => {
    take([...input.files].filter(file => usable(file.name)));
    input.value = '';
  });
});
['dragover', 'dragenter'].forEach(name => zone.addEventListener(name, event => {
  event.preventDefault();
  zone.classList.add('over');
}));
['dragleave', 'drop'].forEach(name => zone.addEventListener(name, () => zone.classList.remove('over')));
zone.addEventListener('drop', async event => {
  event.preventDefault();
  const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
  const found = [];
  for (const entry of entries) await walk(entry, found);
  take(found);
});
