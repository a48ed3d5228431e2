package check

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"
)

const greeting = "220 relay.test ESMTP\r\n"

// follow answers each line of the client with the next text; the last one again and again.
func follow(answers ...string) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for i := 0; ; i++ {
			if _, err := io.WriteString(c, answers[min(i, len(answers)-1)]); err != nil {
				return
			}
			if _, err := in.ReadString('\n'); err != nil {
				return
			}
		}
	}
}

// flood says a text for ever.
func flood(text string) func(net.Conn) {
	return func(c net.Conn) {
		for {
			if _, err := io.WriteString(c, text); err != nil {
				return
			}
		}
	}
}

// TestHostileServers: none of them hangs the check, floods the terminal or moves its cursor.
func TestHostileServers(t *testing.T) {
	trickle := func(c net.Conn) {
		for {
			if _, err := io.WriteString(c, "2"); err != nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	ehlo := "250-relay.test\r\n250-AUTH SCRAM-SHA-256 PLAIN LOGIN\r\n250 SIZE\r\n"
	challenge := func(text string) string { return "334 " + base64.StdEncoding.EncodeToString([]byte(text)) + "\r\n" }
	for name, tt := range map[string]struct {
		talk func(net.Conn)
		step string
		want string
	}{
		"silent":          {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, "greeting", "no answer within"},
		"gone":            {func(net.Conn) {}, "greeting", "closed the connection"},
		"trickle":         {trickle, "greeting", "no answer within"},
		"endless line":    {flood("220 x"), "greeting", "does not stop talking"},
		"endless reply":   {flood("220-hello\r\n"), "greeting", "does not stop talking"},
		"short lines":     {flood("220-\n"), "greeting", "does not stop talking"},
		"garbage":         {flood("\x00\x1b[2J\xff\xfe\n"), "greeting", "no reply of SMTP"},
		"NUL":             {follow(strings.Repeat("\x00", 100) + "\r\n"), "greeting", "no reply of SMTP"},
		"http":            {follow("HTTP/1.1 400 Bad Request\r\n\r\n"), "greeting", "no reply of SMTP"},
		"no code":         {follow("220hello\r\n"), "greeting", "no reply of SMTP"},
		"busy":            {follow("421 4.3.2 \x1b]0;title\x07 later\r\n"), "greeting", `\x1b]0;title\x07 later`},
		"endless EHLO":    {func(c net.Conn) { _, _ = io.WriteString(c, greeting); flood("250-X\r\n")(c) }, "ehlo", "does not stop talking"},
		"refused EHLO":    {follow(greeting, "550 no\r\n"), "ehlo", "550 no"},
		"injected":        {follow(greeting, "250-a\r\n250 STARTTLS\r\n", "220 go\r\n250 injected\r\n"), "tls", "text behind its reply"},
		"refused TLS":     {follow(greeting, "250-a\r\n250 STARTTLS\r\n", "454 4.7.0 no\r\n"), "tls", "454 4.7.0 no"},
		"clear TLS":       {follow(greeting, "250-a\r\n250 STARTTLS\r\n", "220 go\r\n", "250 hello\r\n"), "tls", "TLS"},
		"stuck TLS":       {follow(greeting, "250-a\r\n250 STARTTLS\r\n", "220 go\r\n", ""), "tls", ""},
		"no base64":       {follow(greeting, ehlo, "334 ???\r\n"), "auth", "not base64"},
		"much work":       {follow(greeting, ehlo, challenge("r=x,s=AAAA,i=2000000000")), "auth", "rounds of hashing"},
		"more work":       {follow(greeting, ehlo, challenge("r=x,s=AAAA,i=99999999999999999999")), "auth", "rounds of hashing"},
		"another nonce":   {follow(greeting, ehlo, challenge("r=x,s=AAAA,i=4096")), "auth", "server nonce"},
		"no challenge":    {follow(greeting, ehlo, "334 \r\n"), "auth", "answer in SCRAM-SHA-256 is wrong"},
		"questions":       {follow(greeting, ehlo, challenge("tell me")), "auth", "answer in SCRAM-SHA-256 is wrong"},
		"takes any login": {scramServer(ehlo, "235 come in\r\n"), "auth", "did not prove"},
		"no proof":        {scramServer(ehlo, challenge("v="+base64.StdEncoding.EncodeToString(make([]byte, 32)))), "auth", "did not prove"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Options{Server: scripted(t, tt.talk), User: "web1", Password: goodPassword, Timeout: time.Minute}
			if strings.Contains(name, "TLS") || name == "injected" {
				o.TLS = StartTLS
			}
			if tt.want == "" || strings.Contains(tt.want, "no answer") {
				o.Timeout = 2 * time.Second // else it has answered before
			}
			began := time.Now()
			r := SMTP(t.Context(), o)
			is(t, r, false)
			has(t, r, Bad, tt.step, tt.want)
			if took := time.Since(began); took > 45*time.Second {
				t.Errorf("took %v", took)
			}
			size := 0
			for _, l := range r.Transcript {
				size += len(l.Text)
				if strings.ContainsAny(l.Text, "\x00\x1b\x07\r\n") {
					t.Errorf("got %q, which moves the cursor", l.Text)
				}
			}
			if size > 2*maxReplyBytes || len(r.Transcript) > 300 {
				t.Errorf("got %d lines of %d octets", len(r.Transcript), size)
			}
			if strings.Contains(told(r), goodPassword) {
				t.Errorf("the password is shown:\n%s", told(r))
			}
		})
	}
}

// scramServer goes on as a server of SCRAM does, up to the last answer.
func scramServer(ehlo, last string) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		_, _ = io.WriteString(c, greeting)
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(c, ehlo)
		line, _ := in.ReadString('\n')
		fields := strings.Fields(line)
		first, _ := base64.StdEncoding.DecodeString(fields[len(fields)-1])
		_, nonce, _ := strings.Cut(string(first), "r=")
		fmt.Fprintf(c, "334 %s\r\n", base64.StdEncoding.EncodeToString([]byte("r="+nonce+"x,s=AAAAAAAAAAA=,i=4096")))
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(c, last)
		_, _ = io.Copy(io.Discard, in)
	}
}

// TestEcho: a server that repeats what it hears shows no secret either.
func TestEcho(t *testing.T) {
	echo := func(c net.Conn) {
		in := bufio.NewReader(c)
		_, _ = io.WriteString(c, greeting)
		_, _ = in.ReadString('\n')
		_, _ = io.WriteString(c, "250-a\r\n250 AUTH PLAIN LOGIN\r\n")
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			line = strings.TrimSpace(line)
			word := line[strings.LastIndexByte(line, ' ')+1:]
			plain, _ := base64.StdEncoding.DecodeString(word)
			if line == "AUTH LOGIN" || len(plain) == 4 {
				_, _ = io.WriteString(c, "334 \r\n")
				continue
			}
			fmt.Fprintf(c, "535-you said %s\r\n535 that is %s\r\n", line, plain)
		}
	}
	for _, mechanism := range []string{"PLAIN", "LOGIN"} {
		r := SMTP(t.Context(), Options{Server: scripted(t, echo), User: "web1", Password: goodPassword, Mechanism: mechanism, AuthInClear: true})
		is(t, r, false)
		has(t, r, Bad, "auth", "********")
		for _, secret := range []string{goodPassword, encode(goodPassword), encode("\x00web1\x00" + goodPassword)} {
			if strings.Contains(told(r), secret) {
				t.Errorf("%s: %q is shown:\n%s", mechanism, secret, told(r))
			}
		}
	}
}

// TestStopped: who ends the check does not wait for the server.
func TestStopped(t *testing.T) {
	addr := scripted(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	began := time.Now()
	r := SMTP(ctx, Options{Server: addr, Timeout: time.Minute})
	is(t, r, false)
	if took := time.Since(began); took > 50*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.%d.%d.%d:0", 1+rand.N(254), rand.N(256), 1+rand.N(254))) // where nobody comes up
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	r := SMTP(t.Context(), Options{Server: l.Addr().String()})
	is(t, r, false)
	has(t, r, Bad, "connect", "connection refused")
	for _, o := range []Options{
		{Server: l.Addr().String(), Sender: "a@b.test>\r\nRCPT TO:<c@d.test"},
		{Server: l.Addr().String(), Recipients: []string{"a\nb"}},
		{Server: l.Addr().String(), User: "a\x00b"},
		{Server: l.Addr().String(), Stop: Rcpt},
	} {
		r := SMTP(t.Context(), o)
		is(t, r, false)
		has(t, r, Bad, "options", "")
	}
}

func FuzzReply(f *testing.F) {
	for _, text := range []string{greeting, "250-a\r\n250 b\r\n", "\x00\xff\n", "220", "250-a\n", "2xx a\r\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		client, server := net.Pipe()
		defer client.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = server.Write(text)
			_ = server.Close()
		}()
		w := wire{raw: client, conn: client, in: bufio.NewReader(client), timeout: 10 * time.Second, say: func(l Line) {
			if strings.ContainsAny(l.Text, "\x00\x1b\r\n") || len([]rune(l.Text)) > 11*maxLineShown {
				t.Errorf("got %q", l.Text)
			}
		}}
		r, err := w.read()
		if err == nil && (r.code < 200 || r.code > 599 || len(r.lines) == 0) {
			t.Errorf("got %+v", r)
		}
		_ = client.Close()
		<-done
	})
}
