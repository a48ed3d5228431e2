#!/bin/bash
# DKIM keys stay with the signer. With a real Vault, set up by deploy/vault, and four processes (queue, ingress, signer, delivery), each
# with the login of its own role: 50 messages are signed and delivered, then
#   - the tokens of ingress and delivery may not read, list, write or destroy a key, nor use one in transit; the signer's may not write
#     one, nor read what is another role's;
#   - pieces of the private keys, in the forms that they can have in memory or on disk, are in no data directory (JetStream's files among
#     them, looked at while the mails were there), no log, no delivered message, and in no core of the other three processes. The same
#     search finds them in the signer's core, and in planted files;
#   - a signer that crashes leaves no core file, where another role does.
# Needs root (gcore).
source "$(dirname "$0")/lib.sh"
. .ci/verify/dkim-lib.sh
need curl postfix gdb openssl
dkim_need
. .ci/verify/vault-lib.sh
messages=50
domain=sender.example

build
free_ports smtp mail nats
vault_start
vault_roles ingress signer delivery admin
root_setup -t transit >"$work/transit.log" 2>&1 || die "setup.sh -t transit"
vault_admin
export TMPDIR=$work/tmp HOME=$work # what anybody puts into passing files is searched too
mkdir -p "$TMPDIR" "$work/keys" "$work/sink" "$work/traces" "$work/cores"

# --- four processes

# role NAME ROLES [ROLE OF VAULT] writes the configuration of a process. Routes are the delivery's; the others do not look at them.
role() {
	cat >"$work/$1.yaml" <<-CONF
		hostname: $1.$domain
		domain: $domain
		data_dir: $work/data-$1
		roles: [$2]
		ingress: {listeners: [{address: "127.0.0.1:$smtp"}]}
		delivery:
		  routes: [{domains: [box.example], via: "smtp:[127.0.0.1]:$mail", allow_private: true}]
		log: {format: json, level: debug}
	CONF
	if [ "$1" = queue ]; then
		printf 'queue: {listen: "127.0.0.1:%s"}\n' "$nats"
	else
		printf 'queue: {urls: ["nats://127.0.0.1:%s"]}\n' "$nats"
		vault_settings "$3"
	fi >>"$work/$1.yaml"
}
role queue "queue, ops"
role ingress ingress ingress
role signer signer signer
role delivery delivery delivery
cp "$work/queue.yaml" "$work/postroad.yaml"

# begin NAME starts a process in a directory of its own, in which a crash may leave a core file.
declare -A process
begin() {
	mkdir -p "$work/crash-$1"
	(
		cd "$work/crash-$1"
		ulimit -c unlimited
		GOTRACEBACK=crash exec "$work/postroad" serve -c "$work/$1.yaml"
	) 2>>"$work/$1.log" &
	process[$1]=$!
	pids+=("$!")
}
is_up() {
	kill -0 "${process[$1]}" 2>/dev/null || die "the process $1 has ended"
	grep -q '"msg":"ready"' "$work/$1.log"
}

# Keys as people make them; then they sign at once, without the DNS.
"$work/postroad" -c "$work/signer.yaml" --vault-token "$work/admin.token" dkim new $domain >"$work/new.log" 2>&1 || die "dkim new"
selectors=$(sed -n 's/^made key \([^ ]*\) .*/\1/p' "$work/new.log")
[ "$(wc -w <<<"$selectors")" = 2 ] || die "dkim new made no pair"
for selector in $selectors; do
	root kv patch -mount=secret "postroad/dkim/$domain/$selector" state=active >"$work/patch.log" 2>&1 || die "the state of $selector in Vault"
	(
		umask 077
		root kv get -mount=secret -field=private_key "postroad/dkim/$domain/$selector" >"$work/keys/$selector.pem"
	)
	case $selector in
	rsa-*) kind=rsa public=$(openssl pkey -in "$work/keys/$selector.pem" -pubout -outform DER | base64 -w0) ;;
	*) kind=ed25519 public=$(openssl pkey -in "$work/keys/$selector.pem" -pubout -outform DER | tail -c 32 | base64 -w0) ;;
	esac
	printf '%s._domainkey.%s v=DKIM1; k=%s; p=%s\n' "$selector" $domain $kind "$public" >>"$work/records"
done
one=${selectors%%$'\n'*}
root write -f "transit/keys/dkim-$domain" type=rsa-2048 >>"$work/transit.log"
root kv put -mount=secret postroad/clients/rider note=x >>"$work/transit.log"
root kv put -mount=secret postroad/smarthosts/relay note=x >>"$work/transit.log"
root kv put -mount=secret postroad/tls/relay note=x >>"$work/transit.log"
root kv put -mount=secret postroad/tls/client-relay note=x >>"$work/transit.log"
root kv put -mount=secret postroad/ca/postroad note=x >>"$work/transit.log"

begin queue
within 60 is_up queue
for name in ingress signer delivery; do begin $name; done
for name in ingress signer delivery; do within 60 is_up $name; done

marker=horses-$(openssl rand -hex 12)
cat >"$work/send.py" <<'PYTHON'
import smtplib, sys
port, messages, domain, marker = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
with smtplib.SMTP("127.0.0.1", port, timeout=60) as client:
    for n in range(messages):
        client.sendmail("rider@" + domain, ["you@box.example"],
            "From: rider@%s\r\nTo: you@box.example\r\nSubject: %d\r\nDate: Wed, 25 Nov 2026 12:00:00 +0000\r\n"
            "Message-ID: <%d.%s@%s>\r\n\r\n%s are changed at every station.\r\n" % (domain, n, n, marker, domain, marker))
PYTHON
timeout 300 /usr/bin/python3 "$work/send.py" "$smtp" $messages $domain "$marker" >"$work/send.log" 2>&1 || die "the messages were not accepted"

# Nobody listens at the next hop yet: signed mail waits, and the store is copied with all of it inside.
signed() { [ "$(grep -c '"msg":"mail signed"' "$work/signer.log")" -ge $messages ]; }
within 120 signed
deferred() { [ "$(postroad --json queue list | grep -c '"id"')" -ge $messages ]; }
within 60 deferred
postroad --json queue list >"$work/list.log"
for id in $(sed -n 's/.*"id": *"\([^"]*\)".*/\1/p' "$work/list.log" | sort -u); do postroad --json trace "$id" >"$work/traces/$id"; done
[ "$(find "$work/traces" -type f -size +0 | wc -l)" = $messages ] || die "not every message has a trace"
cp -a "$work/data-queue" "$work/store-with-mail"

chown postfix "$work/sink"
smtp-sink -u postfix -d "$work/sink/%M." "127.0.0.1:$mail" 100 >"$work/sink.log" 2>&1 &
pids+=("$!")
within 30 answers "$mail"
postroad queue retry --all >"$work/retry.log" 2>&1 || die "queue retry"
within 180 queue_is_empty
arrived=$(find "$work/sink" -type f -size +0 | wc -l)
[ "$arrived" = $messages ] || die "$arrived of $messages messages arrived"
for file in "$work"/sink/*; do
	[ "$(grep -c '^DKIM-Signature:' "$file")" = 2 ] || die "${file##*/} does not have two signatures"
done
say "$messages messages went through four processes (queue, ingress, signer, delivery) and bear two signatures each; two verifiers on one of them:"
dkim_verify "$file" || die "the signatures"

# --- what the tokens may do

for name in ingress signer delivery; do login $name "$work/$name.token"; done

# status ROLE COMMAND… is 200, or the status with which Vault refuses.
status() {
	local out
	if out=$(HOME=$work VAULT_TOKEN=$(cat "$work/$1.token") vault "${@:2}" 2>&1); then
		echo 200
	else
		sed -n 's/^Code: \([0-9]*\)\..*/\1/p' <<<"$out" | grep . || echo "$out"
	fi
}

# holds STATUS ROLE COMMAND… is one line of the table.
asked=0
printf '{"data": {"private_key": "x"}}\n' >"$work/body.json"
holds() {
	local want=$1 who=$2 got
	shift 2
	got=$(status "$who" "$@")
	[ "$got" = "$want" ] || die "$who: vault $*: got $got, want $want"
	printf '  %-8s %s  vault %s\n' "$who" "$got" "$(sed "s#$one#SELECTOR#; s#@$work/#@#" <<<"$*")"
	asked=$((asked + 1))
}
digest=$(openssl rand 32 | base64)
say "what the tokens may do in Vault:"
for name in ingress delivery; do
	holds 403 $name read "secret/data/postroad/dkim/$domain/$one"
	holds 403 $name read "secret/metadata/postroad/dkim/$domain/$one"
	holds 403 $name list "secret/metadata/postroad/dkim/$domain"
	holds 403 $name list secret/metadata/postroad/dkim
	holds 403 $name list secret/metadata/postroad
	holds 403 $name write "secret/data/postroad/dkim/$domain/$one" "@$work/body.json"
	holds 403 $name write "secret/data/postroad/dkim/$domain/new" "@$work/body.json"
	holds 403 $name delete "secret/data/postroad/dkim/$domain/$one"
	holds 403 $name delete "secret/metadata/postroad/dkim/$domain/$one"
	holds 403 $name write "secret/destroy/postroad/dkim/$domain/$one" versions=1
	holds 403 $name read "transit/keys/dkim-$domain"
	holds 403 $name write "transit/sign/dkim-$domain/sha2-256" "input=$digest" prehashed=true signature_algorithm=pkcs1v15
done
holds 403 signer write "secret/data/postroad/dkim/$domain/$one" "@$work/body.json"
holds 403 signer write "secret/data/postroad/dkim/$domain/new" "@$work/body.json"
holds 403 signer write "secret/metadata/postroad/dkim/$domain/$one" max_versions=1
holds 403 signer delete "secret/data/postroad/dkim/$domain/$one"
holds 403 signer delete "secret/metadata/postroad/dkim/$domain/$one"
holds 403 signer write "secret/destroy/postroad/dkim/$domain/$one" versions=1
holds 403 signer read secret/data/postroad/clients/rider
holds 403 signer list secret/metadata/postroad/clients
holds 403 signer read secret/data/postroad/smarthosts/relay
holds 403 signer read secret/data/postroad/tls/relay
holds 403 signer write -f "transit/keys/dkim-new"
holds 403 signer read "transit/export/signing-key/dkim-$domain"
holds 403 delivery read secret/data/postroad/clients/rider
holds 403 delivery read secret/data/postroad/tls/relay
holds 403 ingress read secret/data/postroad/smarthosts/relay
for name in ingress signer delivery; do
	holds 403 $name read secret/data/postroad/ca/postroad
	holds 403 $name read secret/metadata/postroad/ca/postroad
	holds 403 $name list secret/metadata/postroad/ca
	holds 403 $name write secret/data/postroad/ca/postroad "@$work/body.json"
done
refusals=$asked
# The tokens are good: each reads what is its own.
holds 200 ingress read secret/data/postroad/clients/rider
holds 200 delivery read secret/data/postroad/smarthosts/relay
holds 200 delivery read secret/data/postroad/tls/client-relay
holds 200 signer read "secret/data/postroad/dkim/$domain/$one"
holds 200 signer list "secret/metadata/postroad/dkim/$domain"
holds 200 signer write "transit/sign/dkim-$domain/sha2-256" "input=$digest" prehashed=true signature_algorithm=pkcs1v15

# --- where the bytes of the keys are

cat >"$work/search.py" <<'PYTHON'
"""search.py KEYS LABEL PATH… looks for pieces of the private keys in KEYS/*.pem in files and below directories, and prints one line and
then their number. A piece is what can only be there when the key is, in the forms in which a program, a store or a log would have it."""
import base64, glob, hashlib, os, sys

def number(der, at):
    """The contents of the DER element at an offset, and where it ends."""
    length, at = der[at + 1], at + 2
    if length & 0x80:
        length, at = int.from_bytes(der[at:at + (length & 0x7f)], "big"), at + (length & 0x7f)
    return at, at + length

def forms(name, secret):
    """Octets as they are, in the order in which Go keeps numbers, in hexadecimal and in base64 with any octets in front."""
    yield name, secret
    yield name + " (words of Go)", secret[::-1]
    yield name + " (hex)", secret.hex().encode()
    for i in range(3):
        yield name + " (base64)", base64.b64encode(secret[i:i + (len(secret) - 2) // 3 * 3])

def pieces(path):
    lines = [l for l in open(path).read().split("\n") if l and not l.startswith("-")]
    der = base64.b64decode("".join(lines))
    if len(der) < 100: # Ed25519, RFC 8410: the seed is the end
        seed = der[-32:]
        yield from forms("Ed25519 seed", seed)
        yield "Ed25519 prefix", hashlib.sha512(seed).digest()[32:]
        yield "Ed25519 PEM", lines[0][-40:].encode()
        return
    at, _ = number(der, 0)
    for _ in range(2): # version, algorithm
        _, at = number(der, at)
    at, _ = number(der, at) # the octet string
    at, _ = number(der, at) # RSAPrivateKey, RFC 8017 A.1.2
    for i, name in enumerate(["version", "n", "e", "d", "p", "q", "d mod p-1", "d mod q-1", "1/q mod p"]):
        begin, at = number(der, at)
        if i < 3: # public
            continue
        if i == 3: # lines of PEM from here on are secret
            for line in lines[begin * 4 // 3 // 64 + 1:]:
                if len(line) >= 32:
                    yield "RSA PEM", line.encode()
        middle = (begin + at) // 2
        yield from forms("RSA " + name, der[middle - 16:middle + 16])

def runs(path):
    """The contents of a file without the long stretches of zeros that most of a core is."""
    run = []
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            if block.count(0) < len(block):
                run.append(block)
            elif run:
                yield b"".join(run)
                run = []
    yield b"".join(run)

wanted = [p for path in sorted(glob.glob(sys.argv[1] + "/*.pem")) for p in pieces(path)]
files, size, found = 0, 0, {}
for top in sys.argv[3:]:
    if not os.path.exists(top):
        sys.exit("search.py: there is no " + top)
    for path in [top] if os.path.isfile(top) else [os.path.join(d, f) for d, _, names in os.walk(top) for f in names]:
        if os.path.islink(path) or not os.path.isfile(path) or os.path.getsize(path) == 0:
            continue
        files, size = files + 1, size + os.path.getsize(path)
        for run in runs(path):
            for i, (name, octets) in enumerate(wanted):
                if octets in run:
                    found[i] = name
names = sorted(set(found.values()))
print("%-42s %4d files, %6.1f MiB: %s of %d pieces%s" % (sys.argv[2], files, size / (1 << 20), len(found) or "none", len(wanted),
      ": " + ", ".join(names) if names else ""))
print(len(found))
PYTHON

# search LABEL PATH… prints a line and sets found.
search() {
	local out
	out=$(python "$work/search.py" "$work/keys" "$@") || die "the search for pieces of keys does not work"
	found=${out##*$'\n'}
	printf '  %s\n' "${out%$'\n'*}"
}
none() {
	search "$@"
	[ "$found" = 0 ] || die "$1 has pieces of private keys"
}

for name in queue ingress delivery signer; do
	timeout 120 gcore -o "$work/cores/$name" "${process[$name]}" >"$work/gcore-$name.log" 2>&1 || die "gcore of the process $name"
	kill -0 "${process[$name]}" 2>/dev/null || die "the process $name did not outlive gcore"
done

# A crash: SIGABRT, which Go answers by a core file when GOTRACEBACK is crash and core files are allowed.
crash() {
	disown "${process[$1]}" # or the shell would tell of it
	kill -ABRT "${process[$1]}"
	wait_end "${process[$1]}" 60 || die "the process $1 outlives SIGABRT"
}
limit=$(awk '/^Max core file size/ {print $5, $6}' "/proc/${process[signer]}/limits")
[ "$limit" = "0 0" ] || die "the signer's limit of core files is $limit, want 0"
crash signer
crash delivery

say "private keys, in pieces (numbers, their order in Go, hexadecimal, base64, lines of PEM):"
grep -rqaF "$marker" "$work/store-with-mail" || die "the store shows no message: the search in it shows nothing"
grep -rqaF "DKIM-Signature" "$work/store-with-mail" || die "the store shows no signature: the search in it shows nothing"
none "the store with all mail in it" "$work/store-with-mail"
none "traces of the mails" "$work/traces"
none "data directories of all four" "$work"/data-*
none "logs of all four, of Vault and of commands" "$work"/*.log
none "delivered messages" "$work/sink"
none "passing files" "$work/tmp"
for name in queue ingress delivery; do
	grep -qaF "$marker" "$work/cores/$name".* || die "the core of $name shows no message: the search in it shows nothing"
	none "core of $name" "$work/cores/$name".*
done

search "control: core of the signer" "$work/cores/signer".*
[ "$found" -gt 0 ] || die "the search does not find the keys where they are: it shows nothing"
kinds=$(python "$work/search.py" "$work/keys" x "$work/cores/signer".*)
[[ $kinds == *RSA* && $kinds == *Ed25519* ]] || die "the search finds only one of the two keys in the signer"
mkdir "$work/planted"
cp "$work"/keys/*.pem "$work/planted"
for pem in "$work"/keys/*.pem; do openssl pkey -in "$pem" -outform DER; done >"$work/planted/der"
for pem in "$work"/keys/*.pem; do openssl pkey -in "$pem" -outform DER | base64 -w0; done >"$work/planted/base64"
for pem in "$work"/keys/*.pem; do openssl pkey -in "$pem" -outform DER | od -An -v -tx1 | tr -d ' \n'; done >"$work/planted/hex"
search "control: planted files" "$work/planted"
for file in "$work"/planted/*; do
	search "control: planted ${file##*/}" "$file" >>"$work/planted.out"
	[ "$found" -gt 0 ] || die "the search does not find the planted ${file##*/}"
done

# A core file by the kernel: in the directory of the process, unless core_pattern puts it elsewhere.
core_of() { find "$work/crash-$1" -type f -name 'core*' | head -n 1; }
[ -z "$(core_of signer)" ] || die "a signer that crashed left a core file"
if [ -n "$(core_of delivery)" ]; then
	none "core file of a crashed delivery" "$(core_of delivery)"
	say "a signer that crashes leaves no core file, a delivery under the same limits does"
else
	say "core_pattern is $(cat /proc/sys/kernel/core_pattern): that a crashed signer leaves no core file shows nothing here; its limit is 0"
fi

say "permissions: $refusals requests with tokens of other roles refused with 403; no piece of a private key outside the signer and Vault"
