// Figures of what was measured.

export function median(values) {
  return values.length ? [...values].sort((a, b) => a - b)[values.length >> 1] : NaN;
}
