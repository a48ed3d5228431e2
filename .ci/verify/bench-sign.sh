#!/bin/bash
# Measures what a signature costs, beside `openssl speed` and Debian's OpenDKIM on this machine, in one run: rounds in which each is
# measured once after the other, so that a change of the machine meets all of them. Then 10,000 domains with a cold and a warm cache of
# keys, over files and over a Vault that answers at once. Everything is CPU time and so a rate per core; other work on the machine makes
# caches and clock worse, but is not counted. What is measured of each:
#
#   openssl speed   private operations alone, by OpenSSL in C and assembler (user time)
#   Go, bare        the same by crypto/rsa and crypto/ed25519 of Go
#   Postroad        a message of 10 KB from its octets to the DKIM-Signature field: parsing, canonicalization, hashes, signature; no queue
#   OpenDKIM        the same message, given to opendkim by a milter client over one connection: all CPU time of the process opendkim,
#                   which the milter protocol is part of; the client's is not counted
#
#   .ci/verify/bench-sign.sh [ROUNDS [DOMAINS]]     5 and 10000; DOMAINS is how many of the 10,000 are asked for
source "$(dirname "$0")/lib.sh"
need openssl opendkim
rounds=${1:-5}
asked=${2:-10000}

go test -c -o "$work/sign.test" ./signer
go test -c -o "$work/vault.test" ./signer/vault
mkdir "$work/keys"
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$work/keys/rsa.pem" 2>/dev/null
openssl genpkey -algorithm ED25519 -out "$work/keys/ed25519.pem"

# One opendkim for each algorithm.
declare -A milters
for name in rsa ed25519; do
	cat >"$work/$name.conf" <<-CONF
		Mode s
		Socket local:$work/$name.sock
		Domain example.com
		Selector s1
		KeyFile $work/keys/$name.pem
		SignatureAlgorithm $name-sha256
		Canonicalization relaxed/relaxed
		InternalHosts 127.0.0.0/8
		RequireSafeKeys no
		Syslog no
	CONF
	opendkim -f -x "$work/$name.conf" >"$work/opendkim-$name.log" 2>&1 &
	milters[$name]=$!
	pids+=("$!")
	within 30 test -S "$work/$name.sock"
done

cat >"$work/bench.py" <<'PYTHON'
import os, re, socket, statistics, struct, subprocess, sys
work, rounds, asked, milters = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), {"rsa": int(sys.argv[4]), "ed25519": int(sys.argv[5])}
tick = os.sysconf("SC_CLK_TCK")
loads = []

head = [(b"Received", b"from host (host [192.0.2.1]) by relay with ESMTP id x; Wed, 25 Nov 2026 10:00:00 +0000"), (b"MIME-Version", b"1.0"),
        (b"Content-Type", b"text/plain; charset=utf-8"), (b"Content-Transfer-Encoding", b"8bit"), (b"From", b"Alice <alice@example.com>"),
        (b"To", b"bob@example.net"), (b"Subject", b"Hello"), (b"Date", b"Wed, 25 Nov 2026 10:00:00 +0000"), (b"Message-ID", b"<1@example.com>")]
size = 10 << 10 # as in signer/bench_test.go
body = b"Hello Bob.\r\n"
body += (b"0123456789" * 7 + b"\r\n") * ((size - len(body) - sum(len(n) + len(v) + 4 for n, v in head)) // 72)

class Milter:
    """The side of the MTA, as Postfix does it: steps that the filter does not want are left out, answers it does not give not awaited."""
    steps = {b"C": (0x1, 0x1000), b"H": (0x2, 0x2000), b"M": (0x4, 0x4000), b"R": (0x8, 0x8000), b"T": (0x200, 0x10000),
             b"L": (0x20, 0x80), b"N": (0x40, 0x40000), b"B": (0x10, 0x80000)}
    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(path)
        self.stream = self.socket.makefile("rb")
        self.out = []
        self.put(b"O", struct.pack(">III", 6, 0x1ff, 0x1fffff))
        _, answer = self.get()
        self.protocol = struct.unpack(">III", answer[:12])[2]
        self.macros(b"C", b"j", b"relay.example.com", b"{daemon_name}", b"x")
        self.step(b"C", b"host\x004" + struct.pack(">H", 25) + b"127.0.0.1\0")
        self.step(b"H", b"host\0")
    def put(self, command, data=b""):
        self.out.append(struct.pack(">I", len(data) + 1) + command + data)
    def macros(self, command, *pairs):
        self.put(b"D", command + b"".join(p + b"\0" for p in pairs))
    def get(self):
        self.socket.sendall(b"".join(self.out))
        self.out = []
        length, = struct.unpack(">I", self.stream.read(4))
        answer = self.stream.read(length)
        return answer[:1], answer[1:]
    def step(self, command, data=b""):
        unwanted, silent = self.steps[command]
        if self.protocol & unwanted:
            return
        self.put(command, data)
        if not self.protocol & silent:
            answer, _ = self.get()
            if answer not in (b"c", b"s"):
                sys.exit("opendkim answers %r to %r" % (answer, command))
    def sign(self, n):
        self.macros(b"M", b"i", b"id%d" % n)
        self.step(b"M", b"<alice@example.com>\0")
        self.step(b"R", b"<bob@example.net>\0")
        self.step(b"T")
        space = b" " if self.protocol & 0x100000 else b""
        for name, value in head:
            self.step(b"L", name + b"\0" + space + value + b"\0")
        self.step(b"N")
        self.step(b"B", body)
        self.put(b"E")
        signed = False
        while True:
            answer, data = self.get()
            signed = signed or answer in b"ih" and b"DKIM-Signature\0" in data
            if answer in b"acdrty":
                break
        if not signed:
            sys.exit("opendkim ends with %r and does not sign" % answer)

def used(pid):
    fields = open("/proc/%d/stat" % pid).read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / tick

def opendkim(name, messages):
    milter = Milter("%s/%s.sock" % (work, name))
    for n in range(50):
        milter.sign(n)
    began = used(milters[name])
    for n in range(messages):
        milter.sign(n)
    return (used(milters[name]) - began) / messages

def openssl():
    out = subprocess.run(["openssl", "speed", "-seconds", "2", "rsa2048", "ed25519"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout.decode()
    return [1 / float(re.search(pattern + r".*?([0-9.]+) +[0-9.]+$", out, re.M).group(1)) for pattern in ("rsa 2048 bits", r"Ed25519")]

def go(binary, pattern, time):
    """CPU seconds per operation of Go benchmarks, on one processor of the runtime, by name."""
    out = subprocess.run([binary, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", time, "-test.timeout", "30m"], cwd=work,
                         env={**os.environ, "GOMAXPROCS": "1"}, stdout=subprocess.PIPE, check=True).stdout.decode()
    got = {m.group(1): float(m.group(2)) / 1e9 for m in re.finditer(r"^Benchmark(\S+) .*?([0-9.e+]+) cpu-ns/op", out, re.M)}
    if not got:
        sys.exit("no benchmark %s in %s" % (pattern, out))
    return got

rows = {}
def note(name, seconds):
    rows.setdefault(name, []).append(seconds)
for n in range(rounds):
    print("round %d of %d" % (n + 1, rounds), file=sys.stderr, flush=True)
    loads.append(open("/proc/loadavg").read().split()[0])
    rsa, ed = openssl()
    note("openssl speed rsa2048", rsa)
    got = go(work + "/sign.test", "^Benchmark(BareKey|Sign)$", "1s")
    for name, seconds in got.items():
        note(name, seconds)
    note("opendkim rsa", opendkim("rsa", 1500))
    note("opendkim ed25519", opendkim("ed25519", 3000))
    note("openssl speed ed25519", ed)

middle = lambda name: statistics.median(rows[name])
ratio = lambda a, b: statistics.median(y / x for x, y in zip(rows[a], rows[b])) # of rates, within a round
print("%d rounds, medians; %d processors; load average before each round: %s" % (rounds, os.cpu_count(), " ".join(loads)))
print("%s; Go's CPU times with GOMAXPROCS=1" % subprocess.run(["openssl", "version"], stdout=subprocess.PIPE).stdout.decode().strip())
line = "%-42s %11s %12s %14s %16s"
print(line % ("", "per s, core", "CPU ms", "rounds' range", "openssl rsa = 1"))
for label, name in [("openssl speed rsa2048, sign", "openssl speed rsa2048"), ("Go crypto/rsa, bare", "BareKey/RSA-2048"),
                    ("Postroad, 10 KB, rsa-sha256", "Sign/RSA-2048"), ("OpenDKIM by milter, 10 KB, rsa-sha256", "opendkim rsa"),
                    ("openssl speed ed25519, sign", "openssl speed ed25519"), ("Go crypto/ed25519, bare", "BareKey/Ed25519"),
                    ("Postroad, 10 KB, ed25519-sha256", "Sign/Ed25519"), ("OpenDKIM by milter, 10 KB, ed25519-sha256", "opendkim ed25519"),
                    ("Postroad, 10 KB, both", "Sign/both")]:
    r = sorted(rows[name])
    print(line % (label, "%.0f" % (1 / middle(name)), "%.3f" % (1000 * middle(name)), "%.3f-%.3f" % (1000 * r[0], 1000 * r[-1]),
                  "%.2f" % ratio(name, "openssl speed rsa2048")))
print("ratios of rates, medians of those within a round:")
for label, a, b in [("Postroad / OpenDKIM, rsa-sha256", "Sign/RSA-2048", "opendkim rsa"), ("Postroad / OpenDKIM, ed25519-sha256", "Sign/Ed25519", "opendkim ed25519"),
                    ("Go crypto/rsa / openssl speed rsa2048", "BareKey/RSA-2048", "openssl speed rsa2048")]:
    print("  %-44s %.2f" % (label, ratio(a, b)))
print("share of the RSA operation itself:")
for label, whole, part in [("of Postroad's rsa-sha256 (Go crypto/rsa)", "Sign/RSA-2048", "BareKey/RSA-2048"), ("of Postroad's both (Go crypto/rsa)", "Sign/both", "BareKey/RSA-2048"),
                           ("of OpenDKIM's rsa-sha256 (openssl speed)", "opendkim rsa", "openssl speed rsa2048")]:
    print("  %-44s %.0f %%" % (label, 100 / ratio(part, whole)))

domain_rounds = min(rounds, 3)
loads = []
rows = {}
for n in range(domain_rounds):
    print("10,000 domains, round %d of %d" % (n + 1, domain_rounds), file=sys.stderr, flush=True)
    loads.append(open("/proc/loadavg").read().split()[0])
    for binary, pattern, times in [("sign", "^BenchmarkDomains$", asked), ("vault", "^BenchmarkKeys$/^(cold|warm)$", asked), ("vault", "^BenchmarkKeys$/^preload$", 1)]:
        for name, seconds in go("%s/%s.test" % (work, binary), pattern, "%dx" % times).items():
            note(name, seconds / 10000 if name == "Keys/preload" else seconds)
print("10,000 domains, an Ed25519 key of their own and one RSA key for all, %d asked for one after the other; medians of %d rounds; load average %s:"
      % (asked, domain_rounds, " ".join(loads)))
line = "  %-64s %10s %17s %14s"
print(line % ("", "CPU ms", "rounds' range", "per s, core"))
for label, name in [("keys of a domain, files, cold", "Domains/keys/cold"), ("keys of a domain, files, looked at again", "Domains/keys/revisit"),
                    ("keys of a domain, files, warm", "Domains/keys/warm"), ("keys of a domain, Vault in the same process, cold", "Keys/cold"),
                    ("keys of a domain, Vault, warm", "Keys/warm"), ("keys of a domain, Vault, all read at the start", "Keys/preload"),
                    ("10 KB signed by both keys, files, cold", "Domains/sign/cold"), ("10 KB signed by both keys, files, looked at again", "Domains/sign/revisit"),
                    ("10 KB signed by both keys, files, warm", "Domains/sign/warm")]:
    r = sorted(rows[name])
    print(line % (label, "%.4f" % (1000 * middle(name)), "%.4f-%.4f" % (1000 * r[0], 1000 * r[-1]), "%.0f" % (1 / middle(name))))
print("  signed, files: cold / warm, rates, median of those within a round: %.2f" % ratio("Domains/sign/cold", "Domains/sign/warm"))
PYTHON
python "$work/bench.py" "$work" "$rounds" "$asked" "${milters[rsa]}" "${milters[ed25519]}"
