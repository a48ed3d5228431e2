package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// command runs postroad and returns its status and what it printed.
func command(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, &out, &errs)
	return status, out.String(), errs.String()
}

// shortDir is a temporary directory whose path is short enough for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cli")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestExitStatuses(t *testing.T) {
	dir := shortDir(t)
	good := writeFile(t, filepath.Join(dir, "good.yaml"), "data_dir: "+dir+"/data\n")
	bad := writeFile(t, filepath.Join(dir, "bad.yaml"), "hostnam: x\nlog: {level: loud}\n")
	missing := writeFile(t, filepath.Join(dir, "files.yaml"), "secrets: {dir: "+dir+"/none}\n")
	tests := []struct {
		args   string
		status int
		out    string // somewhere in standard output
		err    string // somewhere in standard error
	}{
		{"--help", 0, "queue list", ""},
		{"queue --help", 0, "retry", ""},
		{"", 2, "", "expected one of"},
		{"ride", 2, "", "unexpected argument ride"},
		{"serve --fast", 2, "", "unknown flag --fast"},
		{"version", 0, "postroad 0.", ""},
		{"version --json", 0, `"version":"0.`, ""},
		{"config check -c " + good, 0, "good", ""},
		{"config check -c " + bad, 2, "", bad + ":1: hostnam: there is no such setting; did you mean hostname?\n" + bad + ":2: log.level:"},
		{"config check --json -c " + bad, 2, `"line":2,"setting":"log.level"`, ""},
		{"config check --json -c " + good, 0, `"good":true`, ""},
		{"config check -c " + missing, 2, "", missing + ":1: secrets.dir: "},
		{"config check -c " + dir + "/none.yaml", 2, "", "no such file"},
		{"config show -c " + good, 0, "max_bytes: 10GiB", ""},
		{"config show --json -c " + good, 0, `"data_dir":"` + dir, ""},
		{"config schema", 0, `"additionalProperties": false`, ""},
		{"serve -c " + bad, 2, "", "hostnam"},
		{"serve -c " + missing, 2, "", "secrets.dir"},
		{"serve --roles pigeon -c " + good, 2, "", `there is no role "pigeon"`},
		{"serve --roles ingress -c " + good, 2, "", "queue.urls"},
		{"queue list -c " + good, 1, "", "is `postroad serve` running"},
		{"queue counts -c " + good, 1, "", dir + "/data/ops.sock"},
		{"queue retry --all -c " + good, 1, "", "no admin socket"},
		{"trace -c " + good, 2, "", "say which message"},
		{"trace x -c " + bad, 2, "", "hostnam"},
		{"demo --once --listen nowhere", 2, "", "no address to listen on"},
	}
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.args, dir, ""), func(t *testing.T) {
			status, out, errs := command(t, strings.Fields(tt.args)...)
			if status != tt.status || !strings.Contains(out, tt.out) || !strings.Contains(errs, tt.err) {
				t.Errorf("got status %d\nout: %s\nerr: %s\nwant %d, %q, %q", status, out, errs, tt.status, tt.out, tt.err)
			}
			if tt.status != 0 && tt.out == "" && out != "" {
				t.Errorf("got %q on standard output of a command that failed", out)
			}
		})
	}
}

func TestDemoOnce(t *testing.T) {
	status, out, errs := command(t, "demo", "--once", "--listen", "127.0.0.1:0")
	if status != 0 {
		t.Fatalf("got status %d: %s", status, errs)
	}
	for _, want := range []string{"DKIM d=demo.example a=rsa-sha256: good", "DKIM d=demo.example a=ed25519-sha256: good", "  accepted  ", "  signed  ", "  delivered  ", "  finished  "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "Paste") {
		t.Errorf("got an invitation although it ends:\n%s", out)
	}
}

func TestDemoAsJSON(t *testing.T) {
	status, out, errs := command(t, "demo", "--once", "--json", "--listen", "127.0.0.1:0")
	if status != 0 {
		t.Fatalf("got status %d: %s", status, errs)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) < 5 {
		t.Errorf("got %d lines, want the arrival and four events", len(lines))
	}
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

func TestDemoPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	status, _, errs := command(t, "demo", "--once", "--listen", l.Addr().String())
	if status != 1 || !strings.Contains(errs, "in use by another program") || strings.Count(errs, "\n") != 1 {
		t.Errorf("got status %d, %q, want one line", status, errs)
	}
}

// TestDemoStaysUp sends the lines that the demo says one can paste, and ends it as Ctrl-C does.
func TestDemoStaysUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &lockedBuffer{}
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"demo", "--listen", "127.0.0.1:0"}, out, out)
	}()
	waitFor(t, func() bool { return strings.Contains(out.String(), "Ctrl-C ends the demo") })
	address := between(out.String(), "swaks --server ", " --from")
	if _, err := sendMail(t.Context(), address, "you@demo.example", "anyone@elsewhere.example", "From: you@demo.example\r\nSubject: pasted\r\n\r\nhello\r\n"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return strings.Count(out.String(), "a=ed25519-sha256: good") == 2 })
	if !strings.Contains(out.String(), `"pasted"`) {
		t.Errorf("the message is not shown:\n%s", out.String())
	}
	cancel()
	if status := <-ended; status != 0 {
		t.Errorf("got status %d, want 0:\n%s", status, out.String())
	}
}

func between(s, before, after string) string {
	_, rest, _ := strings.Cut(s, before)
	found, _, _ := strings.Cut(rest, after)
	return found
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited too long")
		}
	}
}
