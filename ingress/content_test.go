package ingress

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// contentOf feeds input to the content reader in pieces and reads it with a
// buffer of some size.
func contentOf(input string, pieces, buffer int, mends bool) (string, *dataReader, error) {
	o := DefaultOptions()
	c := &conn{srv: &Server{options: o}, listener: &listener{Listener: Listener{NormalizeLines: mends}}, in: make([]byte, inputBytes), raw: scriptConn{}, broken: false}
	c.stream = scriptConn{r: pieceReader{strings.NewReader(input), pieces}}
	d := c.content()
	var out bytes.Buffer
	_, err := io.CopyBuffer(onlyWriter{&out}, onlyReader{d}, make([]byte, buffer))
	return out.String(), d, err
}

type (
	onlyReader  struct{ io.Reader }
	onlyWriter  struct{ io.Writer }
	pieceReader struct {
		r io.Reader
		n int
	}
)

func (p pieceReader) Read(b []byte) (int, error) { return p.r.Read(b[:min(len(b), p.n)]) }

// model is what DATA means, written the slow way; with mends, where bare CR and
// LF are mended.
func model(input string, mends bool) (string, error) {
	var out strings.Builder
	start := true
	for i := 0; ; {
		rest := input[i:]
		switch {
		case rest == "":
			return out.String(), errVanished
		case start && strings.HasPrefix(rest, ".\r\n"):
			return out.String(), nil
		case start && (rest == "." || rest == ".\r"):
			return out.String(), errVanished
		case start && rest[0] == '.':
			i++
		case strings.HasPrefix(rest, "\r\n"):
			out.WriteString("\r\n")
			i += 2
			start = true
			continue
		case rest == "\r":
			return out.String(), errVanished
		case mends && rest[0] == '\r':
			out.WriteByte(' ')
			i++
		case mends && rest[0] == '\n':
			out.WriteString("\r\n")
			i++
		case rest[0] == '\r':
			return out.String(), errBareCR
		case rest[0] == '\n':
			return out.String(), errBareLF
		default:
			out.WriteByte(rest[0])
			i++
		}
		start = false
	}
}

func TestContentFollowsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		input := strings.Join(rapid.SliceOf(rapid.SampledFrom(
			[]string{"\r\n", "\r\n", "\r\n.", ".", ".\r\n", "a", "bc", "text of a line", "\r", "\n"})).Draw(t, "input"), "")
		pieces := rapid.IntRange(1, 9).Draw(t, "pieces")
		buffer := rapid.IntRange(1, 20).Draw(t, "buffer")
		mends := rapid.Bool().Draw(t, "mends")
		want, wantErr := model(input, mends)
		got, _, err := contentOf(input, pieces, buffer, mends)
		if !errors.Is(err, wantErr) {
			t.Fatalf("%q: got error %v, want %v", input, err, wantErr)
		}
		if wantErr == nil && got != want {
			t.Fatalf("%q: got %q, want %q", input, got, want)
		}
		if err == nil && strings.ContainsAny(strings.ReplaceAll(got, "\r\n", ""), "\r\n") {
			t.Fatalf("%q: bare line ends in %q", input, got)
		}
	})
}

// TestMendedChunks holds what BDAT brings to a listener that mends line ends,
// however it arrives, against the same model.
func TestMendedChunks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		input := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"\r\n", ".", "a", "bc", "\r", "\n"})).Draw(t, "input"), "")
		pieces := rapid.IntRange(1, 9).Draw(t, "pieces")
		c := &conn{srv: &Server{options: DefaultOptions()}, listener: &listener{Listener: Listener{NormalizeLines: true}}}
		var out bytes.Buffer
		_, err := io.CopyBuffer(onlyWriter{&out}, onlyReader{c.chunks(pieceReader{strings.NewReader(input), pieces})}, make([]byte, pieces))
		if err != nil {
			t.Fatalf("%q: %v", input, err)
		}
		want := strings.NewReplacer("\r\n", "\r\n", "\r", " ", "\n", "\r\n").Replace(strings.TrimSuffix(input, "\r"))
		if want != "" && !strings.HasSuffix(want, "\r\n") || strings.HasSuffix(input, "\r") {
			want += "\r\n"
		}
		if got := out.String(); got != want {
			t.Fatalf("%q: got %q, want %q", input, got, want)
		}
	})
}

func TestContentFaults(t *testing.T) {
	tests := []struct {
		name, input string
		want        error
	}{
		{"clean", "a\r\n.\r\n", nil},
		{"998", strings.Repeat("x", 998) + "\r\n.\r\n", nil},
		{"998 behind a stuffed dot", "." + strings.Repeat("x", 998) + "\r\n.\r\n", nil},
		{"999", strings.Repeat("x", 999) + "\r\n.\r\n", errLongLine},
		{"999 and more later", strings.Repeat("x", 999) + "\r\nmore\r\n.\r\n", errLongLine},
		{"NUL", "a\r\n\x00\r\nmore\r\n.\r\n", errNUL},
		{"NUL, then bare LF", "\x00\r\na\nb\r\n.\r\n", errBareLF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, size := range []int{1, 7, 1 << 14} {
				_, d, err := contentOf(tt.input, size, size, false)
				if err != nil {
					if drainErr := d.drain(); drainErr != nil {
						err = drainErr
					}
				}
				if !errors.Is(err, tt.want) {
					t.Errorf("got %v, want %v", err, tt.want)
				}
			}
		})
	}
}

func TestChunksFollowTheSameRules(t *testing.T) {
	tests := []struct {
		name, input, want string
		err               error
	}{
		{"clean", "a\r\n.\r\n..b\r\n", "a\r\n.\r\n..b\r\n", nil},
		{"nothing", "", "", nil},
		{"open line", "a\r\nb", "a\r\nb\r\n", nil},
		{"bare CR last", "a\r", "", errBareCR},
		{"bare CR", "a\rb", "", errBareCR},
		{"bare LF", "a\n", "", errBareLF},
		{"two LF", "a\r\n\n", "", errBareLF},
		{"NUL", "a\x00", "", errNUL},
		{"999", strings.Repeat("x", 999), "", errLongLine},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader} {
				c := &conn{srv: &Server{options: DefaultOptions()}, listener: &listener{}}
				got, err := io.ReadAll(c.chunks(wrap(strings.NewReader(tt.input))))
				if !errors.Is(err, tt.err) {
					t.Fatalf("got error %v, want %v", err, tt.err)
				}
				if err == nil && string(got) != tt.want {
					t.Errorf("got %q, want %q", got, tt.want)
				}
			}
		})
	}
}

func TestHeader(t *testing.T) {
	tests := []struct {
		name, input            string
		fields, body, received int
		author, id             string
	}{
		{"plain", "From: a@b.test\r\nMessage-Id: <1>\r\n\r\nx\r\n", 33, 35, 0, "b.test", "<1>"},
		{"nothing", "", 0, 0, 0, "", ""},
		{"only a blank line", "\r\n", 0, 2, 0, "", ""},
		{"no blank line", "A: b\r\n", 6, 6, 0, "", ""},
		{"body at once", "A: b\r\nno field\r\n", 6, 6, 0, "", ""},
		{"folding without a field", " a\r\nA: b\r\n\r\n", 0, 0, 0, "", ""},
		{"blank before the colon", "Received : x\r\nRECEIVED:\r\n\r\n", 25, 27, 2, "", ""},
		{"name like another", "Received-SPF: x\r\nX-From: c@d\r\n\r\n", 30, 32, 0, "", ""},
		{"folded", "From:\r\n A\r\n <a@b.test>\r\n\r\n", 24, 26, 0, "b.test", ""},
		{"two From", "From: a@b.test\r\nFrom: a@c.test\r\n\r\n", 32, 34, 0, "", ""},
		{"field without name", ": x\r\n\r\n", 0, 0, 0, "", ""},
		{"8-bit name", "\xc3\xbc: x\r\n\r\n", 0, 0, 0, "", ""},
		{"id of two lines with controls", "Message-ID: <1\r\n\t2\x01>\r\n\r\n", 22, 24, 0, "", "<12>"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, wrap := range []func(io.Reader) io.Reader{iotest.OneByteReader, iotest.DataErrReader} {
				h := &header{buf: make([]byte, 0, 4), maxBytes: 1000, maxFields: 10}
				if err := h.read(wrap(strings.NewReader(tt.input))); err != nil {
					t.Fatal(err)
				}
				type seen struct {
					Fields, Body, Received int
					Author, ID             string
				}
				want := seen{tt.fields, tt.body, tt.received, tt.author, tt.id}
				got := seen{h.fields, h.body, h.received, h.authorDomain(), h.messageIDText()}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("-want +got:\n%s", diff)
				}
			}
		})
	}
}

func TestHeaderBounds(t *testing.T) {
	tests := []struct {
		name, input string
		want        error
	}{
		{"fits", strings.Repeat("A: b\r\n", 10) + "\r\n", nil},
		{"fields", strings.Repeat("A: b\r\n", 11) + "\r\n", errHeaderSize},
		{"lines", "A: b\r\n" + strings.Repeat(" \r\n", 50) + "\r\n", errHeaderSize},
		{"octets", "A: " + strings.Repeat("x", 1000) + "\r\n\r\n", errHeaderSize},
		{"octets without an end", strings.Repeat("x", 2000), errHeaderSize},
		{"octets in lines", "A: b\r\n" + strings.Repeat(" "+strings.Repeat("x", 90)+"\r\n", 11) + "\r\n", errHeaderSize},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &header{maxBytes: 1000, maxFields: 10}
			if err := h.read(strings.NewReader(tt.input)); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestAuthorDomain(t *testing.T) {
	tests := map[string]string{
		" a@b.test":                           "b.test",
		" <a@b.test>":                         "b.test",
		" A. Name, Inc. <a@b.test>":           "b.test",
		` "x@evil.test" <a@b.test>`:           "b.test",
		` "quo\"te <x@evil.test>" <a@b.test>`: "b.test",
		" a@b.test (comment <x@evil.test>)":   "b.test",
		" (x@evil.test (nested)) a@b.test":    "b.test",
		" a@b.test, c@d.test":                 "b.test",
		" A <a@b.test>, C <c@d.test>":         "b.test",
		" =?gb2312?B?xxx=?= <a@B.Test>":       "B.Test",
		` <"a>b"@c.test>`:                     "c.test",
		" group: a@b.test;":                   "b.test",
		" undisclosed:;":                      "",
		" ":                                   "",
		" nobody":                             "",
		" <a@\r\n b.test>":                    "b.test",
		" a@[IPv6:2001:db8::1]":               "[IPv6:2001:db8::1]",
		" x@evil.test <a@b.test>":             "b.test",
	}
	for in, want := range tests {
		if got := authorDomain([]byte(in)); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestReceived(t *testing.T) {
	trace := trace{
		helo: "client.test", remote: "[IPv6:2001:db8::1]", hostname: "relay.test", protocol: protocolName(true, false, true, false),
		tls: "TLS 1.3 TLS_AES_128_GCM_SHA256", id: "id1", recipient: "b@to.test",
		now: time.Date(2026, 11, 5, 7, 8, 9, 0, time.FixedZone("", -2*3600)),
	}
	want := "Received: from client.test ([IPv6:2001:db8::1])\r\n\tby relay.test with ESMTPS (TLS 1.3 TLS_AES_128_GCM_SHA256)\r\n" +
		"\tid id1\r\n\tfor <b@to.test>; Thu, 05 Nov 2026 07:08:09 -0200\r\n"
	if diff := cmp.Diff(want, string(trace.appendReceived(nil))); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestProtocolName(t *testing.T) {
	tests := []struct {
		esmtp, utf8, tls, auth bool
		want                   string
	}{
		{false, false, false, false, "SMTP"},
		{true, false, false, false, "ESMTP"},
		{true, false, true, false, "ESMTPS"},
		{true, false, true, true, "ESMTPSA"},
		{true, false, false, true, "ESMTPA"},
		{true, true, false, false, "UTF8SMTP"},
		{true, true, true, false, "UTF8SMTPS"},
		{true, true, true, true, "UTF8SMTPSA"},
	}
	for _, tt := range tests {
		if got := protocolName(tt.esmtp, tt.utf8, tt.tls, tt.auth); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

// Every reply is one line of at most 512 octets whose classes agree (RFC 2034
// §4, RFC 5321 §4.5.3.1.5).
func TestReplyTable(t *testing.T) {
	all := []*refusal{errShutdown, errNotYet, errTooMany, errTooManyAddress, errIdle, errTooManyErrors, errTooManyIdle, errTooManyRecipients, errFull,
		errUnavailable, errStalled, errVanished, errAborted, errTooLongCommand, errCommandLine, errUnknown, errArguments, errChunkSize,
		errNotImplemented, errNoHello, errNested, errNoTransaction, errTLSAlready, errParameter, errParameterValue, errParameterTwice,
		errReversePath, errForwardPath, errNeedsUTF8, errRelaying, errPipelined, errSize, errSizeEndless, errHeaderSize, errEnvelope,
		errLoop, errBareCR, errBareLF, errNUL, errLongLine, replyReady, replyHelp}
	for _, r := range all {
		line := string(appendReply(nil, r))
		if r.code/100 != r.enhanced[0] || len(line) > 512 || strings.Count(line, "\r\n") != 1 || !strings.HasSuffix(line, "\r\n") {
			t.Errorf("got %q", line)
		}
		if r.code == 421 && !r.hangup {
			t.Errorf("%q must end the connection", line)
		}
	}
	for _, r := range rewrites {
		if strings.ContainsAny(r.to, "\r\n") || len(r.to) < 4 {
			t.Errorf("got %q", r.to)
		}
	}
}
