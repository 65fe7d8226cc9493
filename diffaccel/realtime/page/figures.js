// Figures of the pictures that came lately: how many, how late, and how long the network took.

const FRESH = 1000; // milliseconds for which a picture is that of now, or twice what the slowest took
const $ = (id) => document.getElementById(id);
const median = (values) => (values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : NaN);

export class Figures {
  constructor() {
    this.forget();
  }

  forget() {
    [this.times, this.latencies, this.networks] = [[], [], []];
    this.paintedAt = 0;
  }

  // A picture came, perhaps an old one again, which is no measure of painting.
  came({ skipped, networkMs, latency } = {}) {
    const now = performance.now();
    this.times.push(now);
    if (skipped) return;
    this.paintedAt = now;
    if (networkMs !== undefined) this.networks = [...this.networks.slice(-11), networkMs];
    if (latency !== undefined) this.latencies = [...this.latencies.slice(-29), latency];
  }

  // Takes note of the time, and of how many milliseconds a picture may take at the least.
  look(least) {
    this.now = performance.now();
    this.patience = Math.max(FRESH, least, 2 * Math.max(0, ...this.networks));
    this.times = this.times.filter((time) => time > this.now - 2 * this.patience);
  }

  get fresh() {
    return this.now - (this.times.at(-1) ?? -Infinity) < this.patience;
  }

  get still() {
    return this.now - this.paintedAt > this.patience;
  }

  get fps() {
    return this.times.length > 1 ? (1000 * (this.times.length - 1)) / (this.times.at(-1) - this.times[0]) : 0;
  }

  get latency() {
    return median(this.latencies);
  }

  get network() {
    return median(this.networks);
  }
  // Shows them; those that nobody knows are told to be so.
  print(known) {
    const { fps, latency, network } = this;
    $("fps").textContent = fps ? fps.toFixed(fps < 10 ? 1 : 0) : "–";
    $("latency").textContent = fps && latency && known.latency ? latency.toFixed(0) : "–";
    $("network").textContent = network && known.network ? network.toFixed(0) : "–";
  }
}

// Shows what the server counts.
export function count({ skipped, dropped, failed, not_finite, rejected, sessions, limit, pace }) {
  $("skipped").textContent = skipped;
  $("dropped").textContent = dropped;
  $("failed").textContent = failed + not_finite + rejected;
  const people = sessions > 1 ? `${sessions} of ${limit} people here` : "";
  $("people").textContent = [people, pace ? `holds its rate: ${pace}` : ""].filter(Boolean).join(" · ");
}
