"""Score a real digit, then the same digit with its pixels shuffled, and see why the service says what it says.

make serve                          # in one terminal
python examples/score_a_digit.py    # in another; nothing but the standard library
"""

import json
import random
import sys
import urllib.request
from pathlib import Path
from typing import Any

ADDRESS = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
Image = list[list[float]]


def ask(operation: str, **fields: Any) -> dict[str, Any]:
    """POST to the mnist model and return its answer."""
    url, body = f"{ADDRESS}/v1/models/mnist/{operation}", json.dumps(fields).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        answer: dict[str, Any] = json.load(reply)
        return answer


def draw(image: Image) -> str:
    """An image of 256 levels as text."""
    return "\n".join(
        "".join(" .:-=+*#%@"[min(9, int(level) * 10 // 256)] * 2 for level in line) for line in image[3:25]
    )


digit: Image = json.loads((Path(__file__).parent / "digit.json").read_text())["inputs"][0]
pixels = [level for line in digit for level in line]
random.Random(0).shuffle(pixels)
shuffled = [pixels[start : start + 28] for start in range(0, 784, 28)]

print(draw(digit))
score = ask("score", inputs=[digit, shuffled], alpha=0.01)

for index, name in enumerate(("the digit", "its pixels, shuffled")):
    elbo, error = score["elbo"][index], score["elbo_error"][index]
    likelihood, kl = score["log_likelihood"][index], score["kl"][index]
    print(f"\n{name}")
    print(f"  log p(x) ≥ {elbo:.1f} nats, ± {error:.1f} (standard error, {score['elbo_error_df']} degrees of freedom)")
    print(f"           = {likelihood:.1f} for how well it is explained − {kl:.1f} for what had to be told about it")
    print(f"  p = {score['p_value'][index]:.4f} of held-out digits are as strange; anomaly: {score['anomaly'][index]}")

print("\nwhat the model makes of the shuffled one:\n")
print(draw(ask("reconstruct", inputs=[shuffled])["outputs"][0]))
