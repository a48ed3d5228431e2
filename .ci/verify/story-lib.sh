# Shared by the checks that send one message after the other and read what became of it: source it after lib.sh; $smtp is where to send it.
# send RECIPIENT sends a message and sets $id.
send() {
	timeout 180 swaks --timeout 120 --server "127.0.0.1:$smtp" --from rider@sender.example --to "$1" --header "Subject: road to $1" \
		--body 'Horses are changed at every station.' >"$work/swaks.log" 2>&1 || die "swaks: the message was not accepted"
	id=$(sed -n 's/^<.*  250 .*queued as \([0-9a-z]\{27\}\).*/\1/p' "$work/swaks.log")
	[ ${#id} -eq 27 ] || die "swaks got no id in the reply to the final dot"
}

# traced ID PATTERN tells whether the story of a message has a line like that.
traced() { postroad trace "$1" >"$work/trace.log" 2>&1 && grep -q -- "$2" "$work/trace.log"; }

# story ID PATTERN waits for the line and prints it.
story() {
	within 60 traced "$1" "$2"
	say "  $(grep -m 1 -- "$2" "$work/trace.log" | sed 's/^ *//' | cut -c1-220)"
}
