package rewrite

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postroad/queue"
)

// journal is a log that several goroutines write.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

// take gives what was written since it was called last.
func (j *journal) take() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	defer j.b.Reset()
	return j.b.String()
}

const (
	toOne = "canonical:\n- {address: a@own.test, to: one@own.test}\n"
	toTwo = "canonical:\n- {address: a@own.test, to: two@own.test}\n"
	wrong = "canonical:\n- {address: a@own.test}\n"
)

// TestLive follows files through changes, faults and their going away.
func TestLive(t *testing.T) {
	dir := t.TempDir()
	rules := writeFile(t, dir, "rules.yaml", toOne)
	aliases := writeFile(t, dir, "aliases", "one: end@x.test\n")
	synctest.Test(t, func(t *testing.T) {
		log := &journal{}
		registry := prometheus.NewRegistry()
		l, err := NewLive(LiveOptions{
			Files:      Files{Rules: rules, Aliases: aliases, OwnDomain: "own.test"},
			Logger:     slog.New(slog.NewTextHandler(log, nil)),
			Registerer: registry,
		})
		if err != nil {
			t.Fatal(err)
		}
		l.Start()
		expect := func(want string, faults float64, logged string, times int) {
			t.Helper()
			time.Sleep(5 * defaultInterval)
			synctest.Wait()
			if got := l.Sender(mustPath(t, "a@own.test")).String(); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if n := value(t, l.metrics.fileErrors); n != faults {
				t.Errorf("got %v faults, want %v", n, faults)
			}
			if n := len(l.Conditions()); n != int(min(faults, 1)) {
				t.Errorf("got %d conditions with %v faults", n, faults)
			}
			text := log.take()
			if n := strings.Count(text, logged); n != times || times == 0 && text != "" {
				t.Errorf("got %q %d times, want %d times:\n%s", logged, n, times, text)
			}
		}
		expect("one@own.test", 0, "in force", 1)
		expect("one@own.test", 0, "nothing more", 0)
		writeFile(t, dir, "rules.yaml", toTwo)
		expect("two@own.test", 0, "rules for addresses in force", 1)
		writeFile(t, dir, "rules.yaml", wrong)
		expect("two@own.test", 1, "the old ones stay in force", 1)
		expect("two@own.test", 1, "said once for each change", 0)
		writeFile(t, dir, "rules.yaml", toTwo)
		expect("two@own.test", 0, "again those in force", 1)
		if err := os.Remove(rules); err != nil {
			t.Fatal(err)
		}
		expect("two@own.test", 1, "no such file", 1)
		writeFile(t, dir, "rules.yaml", toOne)
		expect("one@own.test", 0, "rules for addresses in force", 1)
		writeFile(t, dir, "aliases", "one: end@x.test\ntwo: |command\n")
		expect("one@own.test", 1, "runs no commands", 1)
		writeFile(t, dir, "aliases", "one: other@x.test\n")
		expect("one@own.test", 0, "rules for addresses in force", 1)
		out, err := l.Expand(queue.Recipient{Path: mustPath(t, "one@own.test")})
		if err != nil || paths(out) != "other@x.test" {
			t.Errorf("got %v, %v", out, err)
		}
		if got := string(l.Header(crlf("From: a\n"))); got != "From: one@own.test\r\n" {
			t.Errorf("got %q", got)
		}
		if _, err := registry.Gather(); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := l.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestLiveWaitsForTheWriter: what is found once only may be half a file.
func TestLiveWaitsForTheWriter(t *testing.T) { synctest.Test(t, testLiveWaitsForTheWriter) }

func testLiveWaitsForTheWriter(t *testing.T) { // in a bubble what is written now is young for ever
	dir := t.TempDir()
	rules := writeFile(t, dir, "rules.yaml", toOne)
	l, err := NewLive(LiveOptions{Files: Files{Rules: rules, OwnDomain: "own.test"}})
	if err != nil {
		t.Fatal(err)
	}
	sender := func() string { return l.Sender(mustPath(t, "a@own.test")).String() }
	l.look()
	writeFile(t, dir, "rules.yaml", "canonical: []\n")
	l.look()
	if got := sender(); got != "one@own.test" {
		t.Errorf("got %s after one look", got)
	}
	writeFile(t, dir, "rules.yaml", toTwo)
	l.look()
	if got := sender(); got != "one@own.test" {
		t.Errorf("got %s after one look", got)
	}
	l.look()
	if got := sender(); got != "two@own.test" {
		t.Errorf("got %s after two looks", got)
	}
	// The same size and the same time, but another content: the look comes soon enough not to trust the time.
	info, err := os.Stat(rules)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, dir, "rules.yaml", strings.Replace(toTwo, "two", "six", 1))
	if err := os.Chtimes(rules, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	l.look()
	l.look()
	if got := sender(); got != "six@own.test" {
		t.Errorf("got %s, want the new content", got)
	}
	// An old file is not read at all.
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(rules, old, old); err != nil {
		t.Fatal(err)
	}
	l.look()
	if !l.isCalm {
		t.Error("an old file is read at every look")
	}
	if err := l.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestNewLiveRefusesFaults(t *testing.T) {
	dir := t.TempDir()
	_, err := NewLive(LiveOptions{Files: Files{Rules: writeFile(t, dir, "rules.yaml", wrong)}})
	if err == nil || !strings.Contains(err.Error(), "rules.yaml:2: to is missing") {
		t.Errorf("got %v", err)
	}
	if _, err := NewLive(LiveOptions{Files: Files{Aliases: filepath.Join(dir, "none")}}); err == nil {
		t.Error("a file that is not there: got no error")
	}
	if _, err := NewLive(LiveOptions{Files: Files{OwnDomain: "not a domain"}}); err == nil {
		t.Error("a domain that is none: got no error")
	}
}
