// The screen of a telephone stays on while a camera is painted: whoever films touches nothing for minutes.

const REFUSED = { release: () => {} };
let lock = null, asking = false;

// To be told again and again: a lock ends where the page is hidden.
export async function stayAwake(wanted) {
  if (asking || document.hidden || wanted === Boolean(lock)) return;
  asking = true;
  if (wanted) {
    lock = await navigator.wakeLock?.request("screen").catch(() => null) ?? REFUSED;
    lock.onrelease = () => (lock = null);
  } else {
    await lock.release();
    lock = null;
  }
  asking = false;
}
