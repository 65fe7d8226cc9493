// A page that nobody sees lets the network rest after a while, unless its pictures are watched elsewhere or recorded.

const PATIENCE = 60_000;

export class Rest {
  // `needed` tells whether somebody wants its pictures all the same; `wake` is called when the page is seen again.
  constructor(needed, wake) {
    this.needed = needed;
    this.since = performance.now();
    document.addEventListener("visibilitychange", () => {
      this.since = performance.now();
      if (!document.hidden) wake();
    });
  }

  get now() {
    return document.hidden && performance.now() - this.since > PATIENCE && !this.needed();
  }
}
