package queue

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"postroad/queue/address"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sampleEnvelope() Envelope {
	return Envelope{
		ReversePath: address.Path{Local: "sender", Domain: "example.org"},
		Recipients: []Recipient{
			{Path: address.Path{Local: "a b", Domain: "example.com"}, ORCPT: "rfc822;a+2Bb@example.com", Notify: []string{"SUCCESS", "FAILURE"}},
			{Path: address.Path{Local: "ü", Domain: "xn--bcher-kva.example"}},
		},
		ENVID: "QQ+2B1", RET: "HDRS", Flags: Flags{EightBit: true, SMTPUTF8: true},
		Client: "web1", Class: "host", RemoteAddr: "192.0.2.1:4711", Helo: "web1.example.org", HeaderFrom: "example.org",
		Accepted:  time.Date(2026, 11, 25, 1, 2, 3, 4000, time.UTC),
		HoldUntil: time.Date(2026, 11, 26, 0, 0, 0, 0, time.UTC),
		Deadline:  Deadline{At: time.Date(2026, 11, 26, 1, 0, 0, 0, time.UTC), Return: true, Trace: true},
	}
}

func sampleJob() Job {
	e := sampleEnvelope()
	return Job{ID: "01ka0000000000000000000000" + "0", Kind: KindMail, Part: 1, Parts: 2, Move: 3, Domain: "example.com",
		ReversePath: e.ReversePath, Recipients: e.Recipients[:1], ENVID: e.ENVID, RET: e.RET, Flags: e.Flags, Client: e.Client,
		Class: e.Class, HeaderFrom: e.HeaderFrom, Accepted: e.Accepted, HoldUntil: e.HoldUntil, Deadline: e.Deadline, Signatures: "DKIM-Signature: v=1\r\n", Size: 1234,
		Chunks: 2, MailSeq: 77, Tries: 4, LastTry: e.Accepted.Add(time.Hour), Reason: "450 4.2.0 later", Delayed: true, Notified: true,
		Remaining: []Class{"5m", "1m"}, Due: e.Accepted.Add(2 * time.Hour)}
}

// TestGolden holds the stored forms: what an older version wrote must stay readable.
func TestGolden(t *testing.T) {
	mail, err := encodeMail(mailHeader{Envelope: sampleEnvelope(), Parts: 2, Size: 7}, []byte("content"))
	if err != nil {
		t.Fatal(err)
	}
	j := sampleJob()
	job, err := encodeJob(&j)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"mail-1.golden": mail, "job-1.golden": job} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	h, content, err := decodeMail(mail)
	if d := cmp.Diff(sampleEnvelope(), h.Envelope); err != nil || d != "" || string(content) != "content" {
		t.Errorf("mail reads back as %q, %v\n%s", content, err, d)
	}
	back, err := decodeJob(job)
	if d := cmp.Diff(j, back); err != nil || d != "" {
		t.Errorf("job reads back: %v\n%s", err, d)
	}
}

func TestDecodeRefuses(t *testing.T) {
	mail, err := encodeMail(mailHeader{Size: 3}, []byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		in   string
		want error
	}{
		{"nothing", "", ErrCorrupt},
		{"another magic", "XXXX", ErrCorrupt},
		{"newer", "PRM2whatever", ErrNewerFormat},
		{"cut in the length", "PRM1\x00\x00", ErrCorrupt},
		{"length beyond the end", "PRM1\x00\x00\xff\xff{}", ErrCorrupt},
		{"header no JSON", "PRM1\x00\x00\x00\x02{]", ErrCorrupt},
		{"content cut", string(mail[:len(mail)-1]), ErrCorrupt},
	} {
		if _, _, err := decodeMail([]byte(c.in)); !errors.Is(err, c.want) {
			t.Errorf("mail, %s: got %v, want %v", c.name, err, c.want)
		}
	}
	for in, want := range map[string]error{"": ErrCorrupt, "PRJ2{}": ErrNewerFormat, "PRJ1{": ErrCorrupt, "PRM1": ErrCorrupt} {
		if _, err := decodeJob([]byte(in)); !errors.Is(err, want) {
			t.Errorf("job %q: got %v, want %v", in, err, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	mail, _ := encodeMail(mailHeader{Envelope: sampleEnvelope(), Parts: 2, Size: 7}, []byte("content"))
	j := sampleJob()
	job, _ := encodeJob(&j)
	f.Add(mail)
	f.Add(job)
	f.Add([]byte("PRM9"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, content, err := decodeMail(b); err == nil {
			again, err := encodeMail(h, content)
			if err != nil {
				t.Fatal(err)
			}
			if _, c, err := decodeMail(again); err != nil || !bytes.Equal(c, content) {
				t.Errorf("mail does not survive: %v", err)
			}
		}
		if j, err := decodeJob(b); err == nil {
			if _, err := encodeJob(&j); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestTokenIsItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "text")
		tok := encodeToken(s)
		if tok == "" || strings.ContainsAny(tok, ". *>\t\r\n\x00") {
			t.Fatalf("%q is no token", tok)
		}
		back, err := decodeToken(tok)
		if err != nil || back != s {
			t.Fatalf("%q → %q → %q, %v", s, tok, back, err)
		}
	})
	for in, want := range map[string]string{"example.com": "example_com", "a_b.c": "a=5fb_c", "": "=", "[192.0.2.1]": "=5b192_0_2_1=5d"} {
		if got := encodeToken(in); got != want {
			t.Errorf("encodeToken(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestTokenRefusesDamage(t *testing.T) {
	for _, s := range []string{"a=", "a=5", "a=zz"} {
		if got, err := decodeToken(s); err == nil {
			t.Errorf("decodeToken(%q) = %q, want an error", s, got)
		}
	}
}

func drawRef(t *rapid.T) ref {
	return ref{
		spot:   spot{rapid.SampledFrom([]Place{PlaceReady, PlaceSign, PlaceLater, PlaceHeld}).Draw(t, "place"), rapid.StringN(1, 8, 16).Draw(t, "detail")},
		domain: rapid.StringN(0, 20, 40).Draw(t, "domain"), id: NewID(), part: rapid.IntRange(0, 20).Draw(t, "part"), move: rapid.IntRange(1, 9).Draw(t, "move"),
	}
}

func TestRefIsItself(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRef(t)
		back, err := parseRef(r.subject())
		if err != nil || back != r {
			t.Fatalf("%+v → %q → %+v, %v", r, r.subject(), back, err)
		}
	})
}

// TestOneJobLives: of any two different jobs of one part exactly one supersedes the other.
func TestOneJobLives(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawRef(t), drawRef(t)
		if isSame := a.spot == b.spot && a.move == b.move; a.supersedes(b) == b.supersedes(a) && !isSame {
			t.Fatalf("%+v and %+v: exactly one must live", a, b)
		}
	})
}

func TestParseRefRefuses(t *testing.T) {
	id := string(NewID())
	for _, s := range []string{"", "ready.1.d." + id + ".0", "mail.1.d." + id + ".0.1", "ready.1.d.nonsense.0.1",
		"ready.1.d." + id + ".x.1", "ready.1.d." + id + ".0.x", "ready.1.d=." + id + ".0.1"} {
		if r, err := parseRef(s); err == nil {
			t.Errorf("parseRef(%q) = %+v, want an error", s, r)
		}
	}
}

func TestPartition(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		domains := rapid.SliceOfN(rapid.SampledFrom([]string{"a.example", "b.example", "c.example"}), 1, 400).Draw(t, "domains")
		var in []Recipient
		for i, d := range domains {
			in = append(in, Recipient{Path: address.Path{Local: string(rune('a' + i%26)), Domain: d}, ORCPT: string(rune(i))})
		}
		n := 0
		for _, part := range partition(in) {
			if len(part) == 0 || len(part) > MaxPartRecipients {
				t.Fatalf("part of %d", len(part))
			}
			for _, r := range part {
				if r.Path.Domain != part[0].Path.Domain {
					t.Fatal("two domains in one part")
				}
			}
			n += len(part)
		}
		if n != len(in) {
			t.Fatalf("%d recipients in, %d out", len(in), n)
		}
	})
}

func TestDecompose(t *testing.T) {
	for in, want := range map[time.Duration]string{
		0: "10s", time.Second: "10s", 10 * time.Second: "10s", 11 * time.Second: "10s 10s", 110*time.Second + 1: "1m 1m", 14*time.Minute + 1: "5m 5m 1m 1m 1m 1m 10s", time.Minute: "1m", 5 * time.Minute: "5m",
		37 * time.Minute: "15m 15m 5m 1m 1m", time.Hour: "1h", 4 * time.Hour: "4h", 24 * time.Hour: "4h 4h 4h 4h 4h 4h",
		59*time.Minute + 50*time.Second: "15m 15m 15m 5m 5m 1m 1m 1m 1m 1m",
	} {
		var names []string
		for _, c := range decompose(in) {
			names = append(names, string(c))
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("decompose(%s) = %q, want %q", in, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := time.Duration(rapid.Int64Range(0, int64(48*time.Hour)).Draw(t, "delay"))
		var sum time.Duration
		for _, c := range decompose(d) {
			sum += c.delay()
		}
		if sum < d || sum > d+max(d/10, time.Minute) {
			t.Fatalf("decompose(%s) waits %s", d, sum)
		}
	})
}

// TestHoldSteps: a hold of any length ends on time, within the shortest delay, and takes few passes through the signer.
func TestHoldSteps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		left := time.Duration(rapid.Int64Range(1, int64(60*24*time.Hour)).Draw(t, "hold"))
		passes := 0
		for ; left > 0; passes++ {
			steps := holdSteps(left)
			if len(steps) > maxHoldSteps {
				t.Fatalf("%d steps at once", len(steps))
			}
			for _, c := range steps {
				left -= c.delay()
			}
		}
		if left <= -ShortestDelay || passes > 12 {
			t.Fatalf("ends %s late, after %d passes", -left, passes)
		}
	})
}

func TestIDs(t *testing.T) {
	id := NewID()
	if back, err := ParseID(strings.ToUpper(string(id))); err != nil || back != id {
		t.Errorf("ParseID: %q, %v, want %q", back, err, id)
	}
	if d := time.Since(id.Time()); d < 0 || d > time.Minute {
		t.Errorf("id of now is %s old", d)
	}
	for _, s := range []string{"", "x", string(id) + "0", string(id[:26]) + "1", strings.Repeat("u", 27)} {
		if _, err := ParseID(s); !errors.Is(err, ErrMalformedID) {
			t.Errorf("ParseID(%q): %v", s, err)
		}
	}
	a, _ := DeriveID(id, "0", "failed x")
	b, _ := DeriveID(id, "0", "failed x")
	c, _ := DeriveID(id, "0", "failed y")
	if a != b || a == c || a == id || !a.Time().Equal(id.Time()) {
		t.Errorf("derived %q, %q, %q of %q", a, b, c, id)
	}
	if _, err := DeriveID("nonsense"); err == nil {
		t.Error("an id of nonsense was derived")
	}
}

// TestJobStaysSmall: what waits is the job, so its size is the price of a waiting mail.
func TestJobStaysSmall(t *testing.T) {
	j := sampleJob()
	j.Signatures = strings.Repeat("x", 900) // RSA-2048 and Ed25519
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 2048 {
		t.Errorf("a job with one recipient takes %d octets", len(b))
	}
}

func TestIsSignedBy(t *testing.T) {
	j := Job{Signatures: "DKIM-Signature: a=rsa-sha256; bh=x=;\r\n c=relaxed/relaxed; d=example.com;\r\n\th=From:To; s=r1; t=1; v=1;\r\n b=d=other.example\r\n" +
		"DKIM-Signature: v=1; s = e1; d =Example.com; b=s=e9;\r\n"}
	for record, want := range map[string]bool{
		"r1._domainkey.example.com": true, "e1._domainkey.example.com": true, "r1._domainkey.other.example": false,
		"e9._domainkey.example.com": false, "r._domainkey.example.com": false, "r1": false, "": false, "*": true,
	} {
		if got := j.isSignedBy(record); got != want {
			t.Errorf("%s: got %v, want %v", record, got, want)
		}
	}
	if (&Job{}).isSignedBy("*") {
		t.Error("a job without signatures is signed by any key")
	}
}

// TestSelectsAuthor tells who is selected by the domain of the author, and what waits for nothing but its signature.
func TestSelectsAuthor(t *testing.T) {
	for _, tt := range []struct {
		job  Job
		sel  Selection
		want bool
	}{
		{Job{HeaderFrom: "Example.com"}, Selection{Author: "example.com"}, true},
		{Job{HeaderFrom: "news.example.com"}, Selection{Author: "example.com"}, false},
		{Job{HeaderFrom: "news.example.com"}, Selection{Author: ".example.com"}, true},
		{Job{HeaderFrom: "example.com"}, Selection{Author: ".example.com"}, false},
		{Job{HeaderFrom: "myexample.com"}, Selection{Author: ".example.com"}, false},
		{Job{}, Selection{Author: "example.com"}, false},
		{Job{Unsigned: true}, Selection{Unsigned: true}, true},
		{Job{}, Selection{Unsigned: true}, false},
		{Job{Unsigned: true, HoldUntil: time.Now().Add(time.Hour)}, Selection{Unsigned: true}, false},
		{Job{Unsigned: true, HoldUntil: time.Now().Add(-time.Hour)}, Selection{Unsigned: true}, true},
	} {
		if got := tt.sel.matches(&tt.job); got != tt.want {
			t.Errorf("%+v of author %q: got %v, want %v", tt.sel, tt.job.HeaderFrom, got, tt.want)
		}
	}
}

// TestE6_81_OwnersAreReversePaths: recipients of a list have parts of their own, which come from its owner; mail from nobody stays that.
func TestE6_81_OwnersAreReversePaths(t *testing.T) {
	path := func(text string) address.Path {
		p, err := address.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	e := Envelope{ReversePath: path("alice@example.org"), ENVID: "e1", RET: "FULL", Recipients: []Recipient{
		{Path: path("a@far.test")}, {Path: path("b@far.test"), Owner: path("boss@own.test")}, {Path: path("c@far.test")},
		{Path: path("d@far.test"), Owner: path("boss@own.test")}, {Path: path("e@far.test"), Owner: path("chief@own.test")},
	}}
	show := func() string {
		var out []string
		for _, j := range (&Signing{Envelope: e}).jobs() {
			var rcpts []string
			for _, r := range j.Recipients {
				rcpts = append(rcpts, r.Path.Local)
			}
			out = append(out, fmt.Sprintf("%d/%d %s %s%s: %s", j.Part, j.Parts, j.ReversePath, j.ENVID, j.RET, strings.Join(rcpts, " ")))
		}
		return strings.Join(out, "; ")
	}
	if got, want := show(), "0/3 alice@example.org e1FULL: a c; 1/3 boss@own.test : b d; 2/3 chief@own.test : e"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	e.ReversePath = address.Path{}
	if got, want := show(), "0/3  e1FULL: a c; 1/3  e1FULL: b d; 2/3  e1FULL: e"; got != want {
		t.Errorf("from nobody: got %s, want %s", got, want)
	}
}
