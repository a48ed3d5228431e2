package bounce

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"io"
	"mime"
	"mime/multipart"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"postroad/queue/address"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	arrival = time.Date(2026, 11, 24, 9, 30, 0, 0, time.UTC)
	now     = arrival.Add(5 * time.Hour)
	alice   = address.Path{Local: "alice", Domain: "example.org"}
	bob     = address.Path{Local: "bob", Domain: "example.net"}
	carol   = address.Path{Local: "carol smith", Domain: "example.net"}
	umlaut  = address.Path{Local: "jürgen", Domain: "example.net"}
)

const message = "DKIM-Signature: v=1; a=ed25519-sha256; d=example.org; s=s1;\r\n\tb=AAAA\r\n" +
	"From: Alice <alice@example.org>\r\nSubject: Hello\r\nMessage-ID: <1@example.org>\r\n\r\nGood day.\r\n"

func report(rcpts ...Recipient) Report {
	return Report{
		ID: "01jd0000000000000000000000", UniqueID: "01jd0000000000000000000000.0.c0ffee",
		Hostname: "mx1.example.org", Domain: "example.org", To: alice, Date: now, Arrival: arrival,
		Recipients: rcpts, ReturnFull: true, Original: strings.NewReader(message), Size: int64(len(message)),
	}
}

func reports() map[string]Report {
	failed := Recipient{Path: bob, ORCPT: "rfc822;Bob+2Bx@old.example", Action: Failed, Status: "5.1.1", RemoteMTA: "mx.example.net",
		Diagnostic: "550 5.1.1 no such user here, and this is a long text so that the field has to be folded over two lines", LastAttempt: now}
	expired := Recipient{Path: carol, Action: Failed, Status: "4.4.7", Diagnostic: "cannot connect (connect)", LastAttempt: now}
	delayed := Recipient{Path: bob, Action: Delayed, Status: "4.2.1", RemoteMTA: "mx.example.net", Diagnostic: "450 4.2.1 try again",
		LastAttempt: now, WillRetryUntil: arrival.Add(5 * 24 * time.Hour)}
	relayed := Recipient{Path: carol, Action: Relayed, Status: "2.0.0", RemoteMTA: "mx.example.net", Diagnostic: "250 2.0.0 ok", LastAttempt: now}
	global := Recipient{Path: umlaut, ORCPT: `utf-8;j\x{FC}rgen@example.net`, Action: Failed, Status: "5.6.7", RemoteMTA: "mx.example.net",
		Diagnostic: "550 5.6.7 nein, jürgen ist nicht da", LastAttempt: now}

	m := map[string]Report{
		"failed":  report(failed, expired),
		"delayed": report(delayed),
		"relayed": report(relayed),
		"mixed":   report(failed, relayed),
		"global":  report(global),
		"ascii":   report(global), // an address of RFC 6531 and a message without SMTPUTF8: cannot happen, must not break
	}
	r := report(failed, expired)
	r.ENVID, r.ReturnFull = "QQ314159+2Fa", false
	m["headers"] = r
	r = m["global"]
	r.SMTPUTF8, r.To = true, address.Path{Local: "älice", Domain: "example.org"}
	r.Original = strings.NewReader(strings.Replace(message, "Hello", "Grüße", 1))
	m["global"] = r
	r = report(failed, expired)
	r.Original = strings.NewReader(strings.Replace(message, "Good day.", "Schönen Tag.", 1))
	m["eightbit"] = r
	r = report(failed, expired)
	r.Original = nil
	m["nothing"] = r
	r = report(Recipient{Path: bob, Action: Failed, Status: "5.0.0\r\nX: y", RemoteMTA: "mx\r\nBcc: x@y",
		Diagnostic: "550 \x00\x1b[31mred\r\n\r\n--boundary\r\nSubject: \u202eevil " + strings.Repeat("a", 2000)})
	r.ENVID = "a+0D+0Ab"
	m["hostile"] = r
	r = report(failed)
	r.IsDouble, r.To = true, address.Path{Local: "postmaster", Domain: "example.org"}
	m["double"] = r
	utf8 := global
	utf8.ORCPT = "utf-8;j\u00fcrgen+2Bx@example.net"
	r = report(utf8)
	r.SMTPUTF8, r.ReturnFull = true, false
	r.Original = strings.NewReader(strings.Replace(message, "Hello", "Grüße", 1))
	m["globalheaders"] = r
	return m
}

func TestWriteGolden(t *testing.T) {
	for name, r := range reports() {
		t.Run(name, func(t *testing.T) {
			got, err := r.Write()
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name+".eml")
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", path, diff)
			}
			checkMessage(t, r, got)
		})
	}
}

// checkMessage holds for every notification, whatever it was made of.
func checkMessage(t *testing.T, r Report, got []byte) {
	t.Helper()
	for i, line := range bytes.SplitAfter(got, []byte("\n")) {
		if len(line) > 1000 || len(line) > 0 && !bytes.HasSuffix(line, []byte("\r\n")) || bytes.Count(line, []byte("\r")) > 1 {
			t.Errorf("line %d is too long or has a bare line end: %q", i+1, line)
		}
		if !isASCII(string(line)) && !(r.To.NeedsSMTPUTF8() && bytes.HasPrefix(line, []byte("To: "))) {
			t.Errorf("line %d is not in 7 bits: %q", i+1, line)
		}
	}
	m, err := mail.ReadMessage(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" {
		t.Fatalf("content type %s: %v", kind, err)
	}
	var types []string
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		p, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, _, err := mime.ParseMediaType(p.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		types = append(types, kind)
		if strings.HasSuffix(kind, "delivery-status") {
			checkStatus(t, r, p)
		}
	}
	if n := len(types); n < 2 || n > 3 || types[0] != "text/plain" || types[1] != "message/"+params["report-type"] {
		t.Errorf("got parts %v of a report of %s", types, params["report-type"])
	}
}

// checkStatus reads the fields back: one group for the message, one for each recipient (RFC 3464 §2.1).
func checkStatus(t *testing.T, r Report, p io.Reader) {
	t.Helper()
	data, err := io.ReadAll(p)
	if err != nil {
		t.Fatal(err)
	}
	groups := strings.Split(strings.TrimRight(string(data), "\r\n")+"\r\n", "\r\n\r\n")
	if len(groups) != 1+len(r.Recipients) {
		t.Fatalf("got %d groups for %d recipients:\n%s", len(groups), len(r.Recipients), data)
	}
	for i, group := range groups {
		m, err := mail.ReadMessage(bufio.NewReader(strings.NewReader(group + "\r\n\r\n")))
		if err != nil {
			t.Fatalf("group %d: %v\n%s", i, err, group)
		}
		required := []string{"Reporting-Mta"}
		if i > 0 {
			required = []string{"Final-Recipient", "Action", "Status"}
		}
		for _, name := range required {
			if len(m.Header[name]) != 1 {
				t.Errorf("group %d has %d fields %s:\n%s", i, len(m.Header[name]), name, group)
			}
		}
	}
}

func TestWriteRefusesNullReversePath(t *testing.T) {
	r := report()
	r.To = address.Path{}
	if _, err := r.Write(); !errors.Is(err, ErrNoSender) {
		t.Errorf("got %v, want %v", err, ErrNoSender)
	}
}

// A report with the boundary in the message it returns must still have three parts.
func TestBoundaryIsNotInTheMessage(t *testing.T) {
	r := report(Recipient{Path: bob, Action: Failed, Status: "5.1.1"})
	hostile := message + "\r\n--" + boundary(r.UniqueID) + "\r\n\r\n--" + boundary(r.UniqueID) + "--\r\n"
	r.Original, r.Size = strings.NewReader(hostile), int64(len(hostile))
	got, err := r.Write()
	if err != nil {
		t.Fatal(err)
	}
	checkMessage(t, r, got)
	if !bytes.Contains(got, []byte(hostile)) {
		t.Error("the message is not in the report")
	}
}

func TestSizeCaps(t *testing.T) {
	big := message + strings.Repeat(strings.Repeat("x", 70)+"\r\n", MaxReturn/72)
	long := strings.Repeat("X-Field: "+strings.Repeat("y", 60)+"\r\n", 2*maxReturnHeader/71) + "\r\nbody\r\n"
	for name, original := range map[string]string{"body": big, "header": long} {
		t.Run(name, func(t *testing.T) {
			r := report(Recipient{Path: bob, Action: Failed, Status: "5.1.1"})
			r.Original, r.Size = strings.NewReader(original), int64(len(original))
			got, err := r.Write()
			if err != nil {
				t.Fatal(err)
			}
			checkMessage(t, r, got)
			if !bytes.Contains(got, []byte("Content-Type: text/rfc822-headers\r\n")) || len(got) > maxReturnHeader+4096 {
				t.Errorf("got %d octets, want the header alone", len(got))
			}
		})
	}
}

func TestReadErrorIsNoNotification(t *testing.T) {
	r := report(Recipient{Path: bob, Action: Failed, Status: "5.1.1"})
	broken := errors.New("queue away")
	r.Original = io.MultiReader(strings.NewReader("From: a\r\n"), errReader{broken})
	if _, err := r.Write(); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func TestClean(t *testing.T) {
	tests := []struct {
		text  string
		limit int
		want  string
	}{
		{"550 no", 100, "550 no"},
		{"  a \t\r\n b\x00c\x7f ", 100, "a b c"},
		{"grün\xff", 100, "gr?n?"},
		{"abcdef", 3, "abc"},
		{"ab cdef", 3, "ab"},
		{"", 10, ""},
	}
	for _, tt := range tests {
		if got := Clean(tt.text, tt.limit); got != tt.want {
			t.Errorf("Clean(%q, %d): got %q, want %q", tt.text, tt.limit, got, tt.want)
		}
	}
}

func TestDecodeXtext(t *testing.T) {
	tests := []struct {
		text, want string
		ok         bool
	}{
		{"abc", "abc", true},
		{"a+2Bb+3D", "a+b=", true},
		{"+C3+BC", "ü", true},
		{"a+2b", "", false}, // hexadecimal digits are upper case
		{"a+2", "", false},
		{"a=b", "", false},
		{"a b", "", false},
		{"a+0D+0Ab", "", false},
		{"ü", "", false},
	}
	for _, tt := range tests {
		if got, ok := DecodeXtext(tt.text); got != tt.want || ok != tt.ok {
			t.Errorf("DecodeXtext(%q): got %q, %v, want %q, %v", tt.text, got, ok, tt.want, tt.ok)
		}
	}
}

func TestHeader(t *testing.T) {
	tests := []struct {
		message string
		limit   int
		want    string
	}{
		{"A: 1\r\nB: 2\r\n\r\nbody", 100, "A: 1\r\nB: 2\r\n"},
		{"A: 1\r\n 2\r\nB: 2\r\n\r\nbody", 13, "A: 1\r\n 2\r\n"},
		{"A: 1\r\nB: 2\r\n 3\r\n\r\nbody", 13, "A: 1\r\n"},
		{"A: 1\r\nB: cut", 100, "A: 1\r\n"},
		{"no line end", 100, ""},
		{"", 100, ""},
	}
	for _, tt := range tests {
		if got := Header([]byte(tt.message), tt.limit); string(got) != tt.want {
			t.Errorf("Header(%q, %d): got %q, want %q", tt.message, tt.limit, got, tt.want)
		}
	}
}

func TestIsAutomatic(t *testing.T) {
	tests := []struct {
		header string
		want   bool
	}{
		{"From: a\r\nSubject: b\r\n", false},
		{"Auto-Submitted: no\r\n", false},
		{"auto-submitted: Auto-Replied\r\n", true},
		{"Precedence: BULK\r\n", true},
		{"Precedence: first-class\r\n", false},
		{"List-Unsubscribe: <https://example.org>\r\n", true},
		{"Subject: x\r\n Precedence: bulk\r\n", false},
	}
	for _, tt := range tests {
		if got := IsAutomatic([]byte(tt.header)); got != tt.want {
			t.Errorf("IsAutomatic(%q): got %v, want %v", tt.header, got, tt.want)
		}
	}
}

// FuzzWrite checks that nothing that a sender, a recipient's host or a message holds can break a notification.
func FuzzWrite(f *testing.F) {
	f.Add("rfc822;bob+2B@example.net", "QQ314159", "550 5.1.1 no\r\nsuch", "5.1.1", message, true, false)
	f.Add("utf-8;j\\x{FC}", "+0D", "\xff\xfe", "", "Subject: ü\r\n\r\n", false, true)
	f.Add("rfc822;", "", "", "4.4.7", "\r\n\r\n--=_x", true, true)
	f.Fuzz(func(t *testing.T, orcpt, envid, diagnostic, status, original string, full, utf8 bool) {
		// The queue holds no bare line ends.
		original = strings.ReplaceAll(strings.ReplaceAll(original, "\r", ""), "\n", "\r\n")
		r := report(Recipient{Path: umlaut, ORCPT: orcpt, Action: Failed, Status: status, RemoteMTA: "mx.example.net", Diagnostic: diagnostic, LastAttempt: now})
		r.ENVID, r.ReturnFull, r.SMTPUTF8 = envid, full, utf8
		r.Original, r.Size = strings.NewReader(original), int64(len(original))
		got, err := r.Write()
		if err != nil {
			t.Fatal(err)
		}
		checkMessage(t, r, got)
	})
}
