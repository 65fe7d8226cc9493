"""JavaScript that asks the live page what it shows, for every browser."""

PICTURES = """(count) => new Promise((done) => addEventListener("diffaccel-picture", () => --count || done(true)))"""

AVERAGE = """() => {
  const canvas = document.getElementById("output");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const sum = [0, 0, 0];
  for (let i = 0; i < data.length; i++) if (i % 4 < 3) sum[i % 4] += data[i];
  return sum.map((value) => value / (data.length / 4));
}"""
