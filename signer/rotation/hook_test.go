package rotation

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script writes a shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommand(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("SECRET_OF_OURS", "x")
	c := Command{Argv: []string{script(t, `printf '%s|' "$#" "$@" "$POSTROAD_OP" "$POSTROAD_NAME" "$POSTROAD_VALUE" "$MINE" "$SECRET_OF_OURS" > "$OUT"`), "first"},
		Env: []string{"OUT=" + out, "MINE=mine"}}
	for _, d := range []struct {
		r    Record
		want string
	}{
		{Record{OpAdd, "s1._domainkey.example.com", "v=DKIM1; p=$(rm -rf /) '"}, "4|first|add|s1._domainkey.example.com|v=DKIM1; p=$(rm -rf /) '|add|s1._domainkey.example.com|v=DKIM1; p=$(rm -rf /) '|mine||"},
		{Record{Op: OpDelete, Name: "n"}, "3|first|delete|n|delete|n||mine||"},
	} {
		if err := c.Publish(t.Context(), d.r); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(out); err != nil || string(got) != d.want {
			t.Errorf("got %q, %v, want %q", got, err, d.want)
		}
	}
}

func TestCommandFails(t *testing.T) {
	for _, c := range []struct {
		name string
		c    Command
		want []string
	}{
		{"no program", Command{}, []string{"no program is given"}},
		{"not there", Command{Argv: []string{"/nowhere/hook"}}, []string{"/nowhere/hook", "no such file"}},
		{"status", Command{Argv: []string{script(t, "echo said this; echo and that >&2; exit 3")}}, []string{"add n", "exit status 3", `it wrote "said this\nand that"`}},
		{"much output", Command{Argv: []string{script(t, "head -c 1000000 /dev/zero | tr '\\0' x; exit 1")}}, []string{"xxx…"}},
		{"too long", Command{Argv: []string{script(t, "exec sleep 300")}, Timeout: 50 * time.Millisecond}, []string{"it took longer than 50ms"}},
		{"leaves somebody behind", Command{Argv: []string{script(t, "sleep 5 & exit 1")}}, []string{"run hook"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			err := c.c.Publish(t.Context(), Record{OpAdd, "n", "v"})
			if err == nil {
				t.Fatal("got no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("got %q, want %q in it", err, want)
				}
			}
			if len(err.Error()) > 3000 {
				t.Errorf("got an error of %d octets", len(err.Error()))
			}
			if took := time.Since(began); took > 2*time.Minute {
				t.Errorf("took %v", took)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := Command{Argv: []string{"true"}}
	if err := c.Publish(ctx, Record{OpAdd, "n", "v"}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}
