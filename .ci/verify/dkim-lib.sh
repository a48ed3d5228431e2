# Shared by the checks that look at signatures: source it after lib.sh. Two verifiers that are not ours must agree.

dkim_need() { need opendkim python3-dkim python3-nacl python3-dnspython; }

# dkim_verify FILE: python3-dkim and OpenDKIM must find one good signature of each algorithm, by the records in
# $work/records, lines of a name and a value. OpenDKIM looks at one signature at a time.
dkim_verify() {
	python - "$1" "$work/records" "$work" <<'PYTHON'
import re, subprocess, sys, dkim
records = dict(line.rstrip("\n").split(" ", 1) for line in open(sys.argv[2]))
message = open(sys.argv[1], "rb").read().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
head, body = message.split(b"\r\n\r\n", 1)
fields = re.split(rb"\r\n(?![ \t])", head)
signatures = [f for f in fields if f.lower().startswith(b"dkim-signature:")]

def lookup(name, timeout=5):
    name = (name.decode() if isinstance(name, bytes) else name).rstrip(".")
    return records[name].encode()

def python3_dkim(text):
    try:
        return dkim.DKIM(text).verify(dnsfunc=lookup)
    except dkim.DKIMException: # how it says that a hash differs
        return False

def opendkim(text):
    open(sys.argv[3] + "/one.eml", "wb").write(text)
    open(sys.argv[3] + "/opendkim.conf", "w").write("Mode v\nTestDNSData file:%s\n" % sys.argv[2])
    out = subprocess.run(["opendkim", "-x", sys.argv[3] + "/opendkim.conf", "-t", sys.argv[3] + "/one.eml", "-vv"],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30).stdout.decode()
    return "verification (s=" in out and "succeeded" in out and "dkim=pass" in out

seen = {}
for one in signatures:
    text = b"\r\n".join([f for f in fields if f == one or f not in signatures]) + b"\r\n\r\n" + body
    tags = dict(t.strip().split("=", 1) for t in one.decode().split(":", 1)[1].split(";") if "=" in t)
    verdict = {"python3-dkim": python3_dkim(text), "OpenDKIM": opendkim(text)}
    if python3_dkim(text + b"x\r\n") or opendkim(text + b"x\r\n"):
        sys.exit("a verifier takes a changed message: it shows nothing")
    seen[tags["a"]] = verdict
    print("  d=%s s=%s a=%s: %s" % (tags["d"], tags["s"], tags["a"],
          ", ".join("%s %s" % (name, "good" if ok else "BAD") for name, ok in verdict.items())))
if sorted(seen) != ["ed25519-sha256", "rsa-sha256"]:
    sys.exit("want one signature of each algorithm, got %s" % sorted(seen))
if not all(all(v.values()) for v in seen.values()):
    sys.exit("a signature is not good")
PYTHON
}
