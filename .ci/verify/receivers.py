"""Sends to one mail server through Postroad and compares what arrives, for receivers.sh:

    receivers.py NAME DOMAIN INGRESS BOX RIDER MANY "EXTENSIONS"

BOX holds a Maildir for each local part; notifications come to the Maildir RIDER, or to BOX/rider when the server itself makes them.
"""
import email, email.policy, hashlib, os, quopri, smtplib, sys, time

name, domain, ingress, box, rider, many, offered = sys.argv[1:]
host, port = ingress.split(":")
offered = set(offered.split())
sender = "rider@sender.example"
WITHIN = 300 # seconds until all is there


def message(case, to, body, more=()):
    head = [
        b"From: Rider <%s>" % sender.encode(), b"To: %s" % to.encode(), b"Subject: %s at %s" % (case.encode(), name.encode()),
        b"Date: Sun, 29 Nov 2026 12:00:00 +0000", b"Message-ID: <%s.%s@sender.example>" % (case.encode(), name.encode()),
        b"X-Check: %s %s" % (name.encode(), case.encode()), b"X-Folded: one\r\n\ttwo   three", b"MIME-Version: 1.0", *more,
    ]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def lines(n, width=70):
    """Deterministic lines, with dots at their beginning here and there."""
    out = []
    for i in range(n):
        text = hashlib.sha256(b"%d" % i).hexdigest() * 2
        out.append((("." if i % 7 == 0 else "") + ("." if i % 21 == 0 else "") + text)[:width].encode())
    return b"\r\n".join(out) + b"\r\n"


class Case:
    def __init__(self, case, to, body, more=(), mail=(), rcpt=(), notices=()):
        self.name, self.to, self.mail, self.rcpt, self.notices = case, to, list(mail), list(rcpt), set(notices)
        self.text = message(case, to[0] + "@" + domain, body, more)


utf8 = b"Content-Type: text/plain; charset=utf-8", b"Content-Transfer-Encoding: 8bit"
cases = [
    Case("plain", ["you"], b"Horses are changed at every station.\r\n.\r\n..\r\n. a dot\r\n"),
    Case("long-line", ["you"], b"x" * 998 + b"\r\n" + b"." * 998 + b"\r\n"),
    Case("empty-body", ["you"], b""),
    Case("8bit", ["you"], "Pferde wechseln an jeder Straße: größer, schöner. \u20ac\r\n".encode() * 30, utf8, ["BODY=8BITMIME"]),
    Case("success", ["you"], b"Tell me.\r\n", mail=["RET=HDRS", "ENVID=check1"], rcpt=["NOTIFY=SUCCESS,FAILURE"],
         notices=[("you", "delivered" if "dsn" in offered else "relayed")]),
    Case("never", ["nobody", "you"], b"Tell me nothing.\r\n", rcpt=["NOTIFY=NEVER"]),
    Case("five-megabytes", ["you"], lines(72_000)),
    Case("thirty", ["r%d" % i for i in range(1, 31)], b"All of you.\r\n"),
    Case("refused", ["nobody", "you"], b"Is anybody there?\r\n", notices=[("nobody", "failed")]),
]
if "smtputf8" in offered:
    cases.append(Case("smtputf8", ["jürgen"], "Grüße\r\n".encode(), utf8, ["SMTPUTF8", "BODY=8BITMIME"]))
else:
    cases.append(Case("smtputf8", ["jürgen"], "Grüße\r\n".encode(), utf8, ["SMTPUTF8", "BODY=8BITMIME"], notices=[("jürgen", "failed")]))
cases += [Case("many-%d" % i, ["you"], lines(20 + i)) for i in range(int(many))]


def send():
    with smtplib.SMTP(host, int(port), timeout=300) as c:
        c.ehlo("check.example")
        for k in cases:
            code, text = c.docmd("MAIL", " ".join(["FROM:<%s>" % sender] + k.mail))
            assert code == 250, (k.name, code, text)
            for to in k.to:
                c.send(("RCPT %s\r\n" % " ".join(["TO:<%s@%s>" % (to, domain)] + k.rcpt)).encode())
                code, text = c.getreply()
                assert code == 250, (k.name, to, code, text)
            assert c.docmd("DATA")[0] == 354
            c.send(k.text.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            code, text = c.getreply()
            assert code == 250, (k.name, code, text)


def files(directory):
    new = os.path.join(directory, "new")
    for entry in sorted(os.listdir(new)) if os.path.isdir(new) else []:
        with open(os.path.join(new, entry), "rb") as f:
            yield f.read().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def split(text):
    head, _, body = text.partition(b"\r\n\r\n")
    fields, current = [], b""
    for line in head.split(b"\r\n"):
        if line[:1] in b" \t" and current:
            current += b"\r\n" + line
        else:
            fields += [current] if current else []
            current = line
    return fields + [current], body


def arrivals():
    """(case, local part) -> texts; and the notifications (local part, action) -> texts."""
    got, notices = {}, {}
    for local in os.listdir(box):
        for text in files(os.path.join(box, local)):
            fields, _ = split(text)
            mine = [f for f in fields if f.startswith(b"X-Check: " + name.encode() + b" ")]
            if mine:
                got.setdefault((mine[0].split()[2].decode(), local), []).append(text)
    for directory in {rider, os.path.join(box, "rider")}:
        for text in files(directory):
            m = email.message_from_bytes(text, policy=email.policy.default)
            for part in m.walk() if m.is_multipart() else []:
                if part.get_content_type() == "message/global-delivery-status":  # RFC 6533; Python does not look into it
                    blocks = quopri.decodestring(part.get_payload(0).as_bytes()).decode()
                    part = email.message_from_string(blocks.replace("\r\n", "\n").split("\n\n", 1)[1])
                final = str(part.get("Final-Recipient", "")).partition(";")[2].strip()
                if final.lower().endswith("@" + domain):
                    notices.setdefault((final.rpartition("@")[0], str(part["Action"]).strip().lower()), []).append(str(part["Status"]).strip())
    return got, notices


refused = {("refused", "nobody"), ("never", "nobody")} | (set() if "smtputf8" in offered else {("smtputf8", "jürgen")})
want = {(k.name, to): k for k in cases for to in k.to if (k.name, to) not in refused}
want_notices = sorted(n for k in cases for n in k.notices)

began = time.time()
send()
accepted = time.time() - began
while True:
    got, notices = arrivals()
    if set(got) >= set(want) and sum(map(len, notices.values())) >= len(want_notices) or time.time() - began > WITHIN:
        break
    time.sleep(0.2)
time.sleep(3)  # would anything come twice?
got, notices = arrivals()

faults = []
for key, k in want.items():
    texts = got.get(key, [])
    if len(texts) != 1:
        faults.append("%s for %s came %d times" % (*key, len(texts)))
    for text in texts:
        fields, body = split(text)
        sent_fields, sent_body = split(k.text)
        if fields[-len(sent_fields):] != sent_fields:
            faults.append("%s: the header has changed: %r" % (k.name, fields[-len(sent_fields):]))
        if body.rstrip(b"\r\n") != sent_body.rstrip(b"\r\n") or len(body) - len(sent_body) not in (0, 2):
            at = next((i for i, (a, b) in enumerate(zip(body, sent_body)) if a != b), min(len(body), len(sent_body)))
            faults.append("%s: the body has changed at octet %d of %d (%d came): %r" % (k.name, at, len(sent_body), len(body), body[at:at + 40]))
        traces = [f for f in fields if f.lower().startswith(b"received:")]
        if not any(t in traces[0] for t in (b"TLSv1.", b"TLS1.", b"esmtps", b"ESMTPS")):
            faults.append("%s came without TLS: %r" % (k.name, traces[0]))
for key in set(got) - set(want):
    faults.append("%s for %s came and should not" % key)
if sorted(n for n, texts in notices.items() for _ in texts) != want_notices:
    faults.append("notifications: got %s, want %s" % ({n: t for n, t in notices.items()}, want_notices))
print("%d messages accepted in %.1f s, %d copies in their boxes, unchanged, over TLS; notifications: %s" % (
    len(cases), accepted, sum(map(len, got.values())), ", ".join("%s %s %s" % (*n, " ".join(t)) for n, t in sorted(notices.items())) or "none"))
sample = split(got[("plain", "you")][0])[0] if ("plain", "you") in got else []
print(next((b" ".join(f.split()).decode() for f in sample if f.lower().startswith(b"received:")), ""))
for f in faults:
    print("FAULT", f)
if faults:
    for directory in {rider, os.path.join(box, "rider")}:
        for text in files(directory):
            print("--- in", directory)
            print(text[:3000].decode("utf-8", "replace"))
sys.exit(bool(faults))
