# Shared by the checks with a real Vault: source it after lib.sh.
#
#   vault_start                    a development server in memory, unsealed; $VAULT_ADDR, and its root token in $root_token
#   vault_roles ingress signer …   deploy/vault/setup.sh; secret ids in $work/ROLE.secret, role ids by `role_id ROLE`
#   vault_admin                    a token of the admin role in $work/admin.token
#   root COMMAND…                  the vault command with the root token

vault_binary=$(.ci/vault/build.sh) || die "Vault cannot be built"
mkdir -p "$work/bin"
ln -sf "$vault_binary" "$work/bin/vault"
PATH=$work/bin:$PATH
root_token=$(openssl rand -hex 16)

vault_start() {
	free_ports vault_port
	export VAULT_ADDR=http://127.0.0.1:$vault_port
	HOME=$work vault server -dev -dev-no-store-token -dev-root-token-id="$root_token" -dev-listen-address="127.0.0.1:$vault_port" \
		>"$work/vault.log" 2>&1 &
	vault_pid=$!
	pids+=("$vault_pid")
	within 60 root status
}

root() { HOME=$work VAULT_TOKEN=$root_token vault "$@"; }

vault_roles() {
	local role files=()
	for role in "$@"; do files+=("$role=$work/$role.secret"); done
	root_setup "${files[@]}" >"$work/roles.log" 2>&1 || die "deploy/vault/setup.sh fails"
}

root_setup() { HOME=$work VAULT_TOKEN=$root_token deploy/vault/setup.sh "$@"; }

role_id() { sed -n "s/^$1 role id: //p" "$work/roles.log"; }

# login ROLE FILE puts a token of a role into a file.
login() {
	(
		umask 077
		HOME=$work vault write -field=token auth/approle/login role_id="$(role_id "$1")" secret_id="$(cat "$work/$1.secret")" >"$2"
	)
}

vault_admin() { login admin "$work/admin.token"; }

# vault_settings ROLE prints the secrets of a configuration for a role.
vault_settings() {
	cat <<-CONF
		secrets:
		  vault:
		    address: $VAULT_ADDR
		    login: approle
		    role: $(role_id "$1")
		    secret_file: $work/$1.secret
	CONF
}
