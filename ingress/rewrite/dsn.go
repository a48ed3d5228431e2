package rewrite

import (
	"fmt"
	"slices"
	"strings"

	"postroad/queue"
	"postroad/queue/address"
)

// become gives a recipient another path. The sender still hears of the address
// that it used: without an ORCPT that address becomes it (RFC 3461 §5.2.1 d).
func become(in queue.Recipient, path address.Path) queue.Recipient {
	if in.ORCPT == "" && path != in.Path {
		in.ORCPT = originalRecipient(in.Path)
	}
	in.Path = path
	return in
}

// redistribute hands the DSN parameters of an alias to those it leads to.
//
// One recipient gets them all (RFC 3461 §5.2.7.2). Of several the first gets
// them all, and the others all but the wish to hear of success, between ways (b)
// and (c) of RFC 3461 §5.2.7.3: failures and delays are reported for every one,
// success once. Way (c) alone would need an "expanded" notification, which
// ingress has no right to make.
//
// Those of a list get none of them (RFC 3461 §5.2.7.1): its owner hears of failures and delays.
func redistribute(in queue.Recipient, leaves []leaf) []queue.Recipient {
	out := make([]queue.Recipient, len(leaves))
	var others []string
	isFirst := true
	for i, l := range leaves {
		if !l.owner.IsNull() {
			out[i] = queue.Recipient{Path: l.path, Owner: l.owner}
			continue
		}
		out[i] = become(in, l.path)
		switch {
		case isFirst || !slices.Contains(in.Notify, "SUCCESS"):
			isFirst = false
			continue
		case others == nil:
			others = withoutSuccess(in.Notify)
		}
		out[i].Notify = others
	}
	return out
}

// withoutSuccess is NOTIFY without SUCCESS. Who asked for nothing else wants to
// hear of nothing else; an empty list would be the default, which is failures.
func withoutSuccess(notify []string) []string {
	rest := slices.DeleteFunc(slices.Clone(notify), func(word string) bool { return word == "SUCCESS" })
	if len(rest) == 0 {
		return []string{"NEVER"}
	}
	return rest
}

// Merge leaves of recipients with the same path the first, with what all of them
// want to be notified of. The local parts must be the same octet for octet: what
// their case means is for their own host to say (RFC 5321 §2.4). It changes the
// slice that it is given.
func Merge(recipients []queue.Recipient) []queue.Recipient {
	if len(recipients) < 2 {
		return recipients
	}
	place := make(map[address.Path]int, len(recipients))
	out := recipients[:0]
	for _, r := range recipients {
		first, isKnown := place[r.Path]
		if !isKnown {
			place[r.Path] = len(out)
			out = append(out, r)
			continue
		}
		switch was := &out[first]; {
		case was.Owner == r.Owner:
			was.Notify = mergeNotify(was.Notify, r.Notify)
		case r.Owner.IsNull(): // from the sender himself, so he hears of it
			*was = r
		}
	}
	return out
}

// mergeNotify joins what was asked for one mailbox by several RCPT. NEVER is a
// wish for silence and yields to any other; not given is the default of RFC 3461
// §4.1, failures and delays.
func mergeNotify(a, b []string) []string {
	isNever := func(n []string) bool { return len(n) == 1 && n[0] == "NEVER" }
	switch {
	case slices.Equal(a, b), isNever(b):
		return a
	case isNever(a):
		return b
	}
	wanted := func(word string) bool {
		for _, n := range [][]string{a, b} {
			if slices.Contains(n, word) || len(n) == 0 && word != "SUCCESS" {
				return true
			}
		}
		return false
	}
	var out []string
	for _, word := range []string{"SUCCESS", "FAILURE", "DELAY"} {
		if wanted(word) {
			out = append(out, word)
		}
	}
	return out
}

// originalRecipient prints a path as the value of ORCPT: as xtext (RFC 3461
// §4), or in the ASCII form of RFC 6533 §3 when it is not ASCII.
func originalRecipient(p address.Path) string {
	text := p.String()
	var b strings.Builder
	if p.NeedsSMTPUTF8() {
		b.WriteString("utf-8;")
		for _, r := range text {
			if r <= ' ' || r >= 0x7f || r == '+' || r == '=' || r == '\\' {
				fmt.Fprintf(&b, `\x{%02X}`, r)
			} else {
				b.WriteRune(r)
			}
		}
		return b.String()
	}
	b.WriteString("rfc822;")
	for _, r := range text {
		if r <= ' ' || r >= 0x7f || r == '+' || r == '=' {
			fmt.Fprintf(&b, "+%02X", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}
