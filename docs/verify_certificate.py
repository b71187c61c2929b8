"""Check a fedward certificate without fedward: python verify_certificate.py FILE [PUBLIC_KEY in 64 hex digits].

Needs dp-accounting and cryptography alone. Ends with an error unless signature, chain and arithmetic hold. What that
shows, and what it cannot, stands in the file itself, under "reading".
"""

import hashlib
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import dp_accounting as dp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def canonical(value):
    """The one spelling of a JSON value that is hashed and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def epsilon(quote, widths):
    """Of one run: a unit is on one side for the life of the data, and pays for that side alone."""
    sides = {}
    for event in quote["events"]:
        step, q, side = dp.GaussianDpEvent(event["noise_multiplier"]), event["sampling_rate"], event["side"]
        accountant = sides.setdefault(side, dp.pld.PLDAccountant(value_discretization_interval=widths[side]))
        accountant.compose(step if q == 1 else dp.PoissonSampledDpEvent(q, step), event["count"])
    return max(accountant.get_epsilon(quote["terms"]["delta"]) for accountant in sides.values())


data = Path(sys.argv[1]).read_bytes()
whole = json.loads(data)
signed, signature = whole["certificate"], whole["signature"]
run, life, ledger, key = signed["run"], signed["life"], signed["ledger"], signed["public_key"]
message = b"fedward/certificate/2\x00" + canonical(signed)
Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)).verify(bytes.fromhex(signature), message)  # or an exception
refused = [sys.argv[2:] not in ([], [key]), json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n" != data]
refused += [bytes.fromhex(signature).hex() != signature]  # upper-case digits: another file with the same meaning

for entry, after in pairwise([*ledger["entries"], {"sequence": ledger["sequence"] + 1, "previous": ledger["head"]}]):
    content = {name: entry[name] for name in ("at", "body", "nonce", "previous", "sequence")}
    refused.append(hashlib.sha256(canonical(content)).hexdigest() != entry["digest"])
    gap = after["sequence"] - entry["sequence"]
    refused.append(gap < 1 or (gap == 1 and after["previous"] != entry["digest"]))

bodies = [entry["body"] for entry in ledger["entries"]]
grants = [grant for body in bodies for grant in ([body] if body["entry"] == "grant" else body.get("grants", []))]
costs = [(grant["run_id"], grant["quote"]["terms"]["delta"]) for grant in grants]
refused += [costs != [(claim["run_id"], claim["delta"]) for claim in life["grants"]], run["id"] not in dict(costs)]
found = [epsilon(grant["quote"], claim["loss_intervals"]) for grant, claim in zip(grants, life["grants"], strict=True)]
stated = [claim["epsilon"] for claim in life["grants"]]
own = [number for number, grant in enumerate(grants) if grant["run_id"] == run["id"]]
found += [sum(found[number] for number in own), sum(costs[number][1] for number in own)]
stated += [run["epsilon"], run["delta"]]
refused += [not math.isclose(a, b, rel_tol=1e-4) for a, b in zip(stated, found, strict=True)]  # four digits
if any(refused):
    sys.exit("refused: spelling, key, chain or arithmetic do not hold")
print(f"run {run['id']}: ({found[-2]:.4g}, {found[-1]:g})-differentially private for each {run['unit']}, says {key}")
print(f"all {len(grants)} runs: epsilon at most {sum(found[:-2]):.4g} in sum; the site says {life['epsilon']:.4g}")
