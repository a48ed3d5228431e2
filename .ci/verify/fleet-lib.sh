# Shared by the checks that need a server with accounts: source it after lib.sh.

# authority makes a private authority and a certificate for relay.sender.example in $work/tls.
authority() {
	mkdir -p "$work/tls"
	(
		cd "$work/tls"
		umask 077
		openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=Private authority' -keyout ca.key -out ca.pem
		openssl req -newkey rsa:2048 -nodes -subj /CN=relay.sender.example -keyout key.pem -out request.pem
		openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out cert.pem \
			-extfile <(printf 'subjectAltName=DNS:relay.sender.example,DNS:localhost,IP:127.0.0.1')
		chmod 644 ca.pem cert.pem
	) >"$work/openssl.log" 2>&1 || die "openssl makes no certificate"
}

# client_add NAME [FLAGS…] makes an account and prints its password.
client_add() { "$work/postroad" -c "$work/postroad.yaml" --json client add "$@" | sed -n 's/.*"password": *"\([^"]*\)".*/\1/p'; }
