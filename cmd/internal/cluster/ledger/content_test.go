package ledger

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func check(message []byte) *Checker {
	c := &Checker{}
	for line := range bytes.Lines(message) {
		c.Line(line)
	}
	return c
}

func TestCheckerKnowsWhatComposeMade(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const signature = "DKIM-Signature: v=1;\r\n"
	plain := Compose(rng, "t1", "r@x.test", 4000)
	if n := len(plain); n < 4000 || n > 4600 {
		t.Errorf("size: got %d, want about 4000", n)
	}
	if bytes.Contains(bytes.ReplaceAll(plain, []byte("\r\n"), nil), []byte("\n")) {
		t.Error("a bare LF")
	}
	if !bytes.Contains(plain, []byte("\r\n.")) {
		t.Error("no line that begins with a dot: stuffing is not tested")
	}
	signed := append([]byte(signature), plain...)
	for _, tc := range []struct {
		name    string
		message []byte
		token   string
		want    string
	}{
		{"as made", signed, "t1", ""},
		{"with trace fields", append([]byte("Received: from a\r\n\tby b\r\n"), signed...), "t1", ""},
		{"unsigned", plain, "t1", "no signature"},
		{"of another", signed, "t2", `token "t1", want "t2"`},
		{"cut short", signed[:len(signed)-200], "t1", "body"},
		{"one octet changed", bytes.Replace(signed, []byte("x\r\n"), []byte("y\r\n"), 40), "t1", "body"},
		{"empty", nil, "t1", "token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := check(tc.message).Damage(tc.token)
			if tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func TestCheckerReadsNotifications(t *testing.T) {
	dsn := "From: MAILER-DAEMON\r\n\r\n--b\r\nFinal-Recipient: rfc822; a@x.test\r\nAction: failed\r\n\r\n" +
		"final-recipient:rfc822;c@x.test\r\naction: delayed\r\n\r\nfinal-recipient:rfc822;b@x.test\r\naction:FAILED\r\n--b--\r\n"
	want := []string{"a@x.test", "b@x.test"}
	if diff := cmp.Diff(want, check([]byte(dsn)).Reports()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
