#!/bin/bash
# A DKIM key is compromised while very much mail is queued with its signature: `postroad dkim compromise` lets the spare sign, empties the record,
# and has everything in the queue signed again. When the destination is back not one message bears the old signature, and each has a
# good one of the spare. Keys in a real Vault, records in Knot, python3-dkim as the verifier.
#
#   .ci/verify/compromise.sh          5,000 messages
#   .ci/verify/compromise.sh 500      fewer
source "$(dirname "$0")/lib.sh"
. .ci/verify/dns-lib.sh
. .ci/verify/dkim-lib.sh
mails=${1:-5000}
need curl postfix openssl knot-dnsutils
dns_need
dkim_need
. .ci/verify/vault-lib.sh

build
free_ports smtp sink dns
vault_start
vault_roles signer admin
vault_admin
cat >"$work/sender.example.zone" <<ZONE
\$ORIGIN sender.example.
\$TTL 2
@ SOA ns1 hostmaster 1 60 60 600 2
@ NS ns1
ns1 A 127.0.0.1
ZONE
knot_start 127.0.0.1 "$dns" sender.example "$work/sender.example.zone"
cat >"$work/postroad.yaml" <<CONF
hostname: relay.sender.example
domain: sender.example
data_dir: $work/data
ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
signer:
  rotation: {resolvers: ["127.0.0.1:$dns"], name_server_port: $dns, keep_spare: true}
$(vault_settings signer)
delivery:
  retry: [1h]
  routes: [{domains: [box.example], via: "smtp:[127.0.0.1]:$sink", tls: none, allow_private: true}]
log: {format: json}
CONF
serve

dkim() { timeout 300 "$work/postroad" -c "$work/postroad.yaml" --vault-token "$work/admin.token" dkim "$@"; }
dkim new sender.example >"$work/new.log" 2>&1 || die "dkim new"
old=$(sed -n 's/^made key \(rsa-[^ ]*\) .*/\1/p' "$work/new.log")
dns_publish sender.example "$dns"
dkim rotate sender.example --wait >"$work/rotate.log" 2>&1 || die "dkim rotate"
# A spare: it is made by the policy, published, and does not sign.
spare_made() {
	dkim rotate sender.example --due >>"$work/spare.log" 2>&1
	dns_publish sender.example "$dns"
	[ "$(dkim list sender.example | grep -c ' published ')" = 2 ]
}
within 60 spare_made
dkim list sender.example >"$work/keys.log"
spare=$(awk '$2 ~ /^rsa-/ && $5 == "published" {print $2}' "$work/keys.log")
say "postroad dkim list:"
sed 's/^/  /' "$work/keys.log"
sleep 35 # until the signer knows

python - "$smtp" "$mails" <<'PYTHON' || die "the messages were not accepted"
import smtplib, sys, threading
port, mails, sessions = int(sys.argv[1]), int(sys.argv[2]), 8
failed = []
def send(part):
    try:
        s = smtplib.SMTP("127.0.0.1", port, timeout=60)
        for n in range(part, mails, sessions):
            s.sendmail("rider@sender.example", ["you@box.example"], "From: rider@sender.example\r\nTo: you@box.example\r\nSubject: number %d\r\n\r\nHorses.\r\n" % n)
        s.quit()
    except Exception as e:
        failed.append(e)
threads = [threading.Thread(target=send, args=(i,)) for i in range(sessions)]
for t in threads: t.start()
for t in threads: t.join()
sys.exit(repr(failed[0]) if failed else 0)
PYTHON
queued_with() { postroad --json queue list --signed-by "$1._domainkey.sender.example" | wc -l; }
all_signed() { [ "$(queued_with "$old")" = "$mails" ]; }
within 180 all_signed
say "queued with the signature of $old: $(queued_with "$old")"

begun=$SECONDS
dkim compromise sender.example "$old" >"$work/compromise.log" 2>&1 || die "dkim compromise"
say "postroad dkim compromise sender.example $old ($((SECONDS - begun)) s):"
grep -v '^signed   ' "$work/compromise.log" | sed 's/^/  /'
[ "$(grep -c '^signed   ' "$work/compromise.log")" = "$mails" ] || die "compromise does not list the $mails messages that were signed with it"
[ "$(queued_with "$old")" = 0 ] || die "jobs with the old signature are left in the queue"
root kv get -mount=secret -format=json "postroad/dkim/sender.example/$old" >"$work/old.json" 2>&1
grep -q 'BEGIN' "$work/old.json" && die "the private half is still in Vault"
dns_publish sender.example "$dns" # the emptied record

mkdir -p "$work/dump"
chmod 777 "$work/dump"
smtp-sink -c -u nobody -d "$work/dump/m." -h mx.box.example "127.0.0.1:$sink" 500 >"$work/smtp-sink.log" 2>&1 &
pids+=("$!")
within 20 answers "$sink"
# A site that was dead for long is probed first; what is put off meanwhile is asked for again.
all_left() {
	postroad queue retry --all >>"$work/retry.log" 2>&1
	sleep 3
	queue_is_empty
}
within 300 all_left
dkim_dns_records "$dns" sender.example "$old" "$spare" >"$work/records"
python - "$work/dump" "$work/records" "$old" "$spare" "$mails" <<'PYTHON' || die "what arrived"
import glob, re, sys, dkim
folder, records, old, spare, mails = sys.argv[1:]
records = dict(line.rstrip("\n").split(" ", 1) for line in open(records))
assert records[old + "._domainkey.sender.example"].endswith("p="), records
lookup = lambda name, timeout=5: records[(name.decode() if isinstance(name, bytes) else name).rstrip(".")].encode()
subjects, good = set(), 0
for name in glob.glob(folder + "/m.*"):
    text = open(name, "rb").read().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    head, body = text.split(b"\r\n\r\n", 1)
    fields = re.split(rb"\r\n(?![ \t])", head)
    signatures = [f for f in fields if f.lower().startswith(b"dkim-signature:")]
    selectors = [re.search(rb"[;\s]s=([^;\s]+)", f).group(1).decode() for f in signatures]
    assert old not in selectors, (name, selectors)
    one = signatures[selectors.index(spare)]
    whole = b"\r\n".join([f for f in fields if f == one or f not in signatures]) + b"\r\n\r\n" + body
    assert dkim.DKIM(whole).verify(dnsfunc=lookup), name
    subjects.add(re.search(rb"Subject: number (\d+)", head).group(1))
    good += 1
assert len(subjects) == int(mails), (len(subjects), mails)
print("%d messages arrived (%d copies), each with a good signature of %s, none of %s" % (len(subjects), good, spare, old))
PYTHON
stop_server
say "compromise: $mails queued messages left signed by the spare key"
