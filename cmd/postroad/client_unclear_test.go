package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postroad/cmd/internal/secrets/fakevault"
)

// lostAnswers makes writes happen whose answers are lost.
func lostAnswers(v *fakevault.Server) {
	v.LoseAnswers(func(method, path string) bool { return isWrite(method, path) })
}

// lostVault does so too, and nothing is answered afterwards.
func lostVault(v *fakevault.Server) {
	written := false
	v.LoseAnswers(func(method, path string) bool {
		if written {
			v.Seal(true)
		}
		is := isWrite(method, path)
		written = written || is
		return is
	})
}

func isWrite(method, path string) bool {
	return method == "PUT" && strings.HasPrefix(path, "secret/data/postroad/clients/")
}

func found(v *fakevault.Server) {
	v.LoseAnswers(nil)
	v.Seal(false)
}

// newestID is the id of the newest password of a client.
func newestID(d *desk, name string) string {
	d.t.Helper()
	passwords := d.listed("clients")[name].Passwords
	if len(passwords) == 0 {
		d.t.Fatalf("client %s has no password", name)
	}
	return passwords[0].ID
}

// TestClientLostAnswer: a change whose answer is lost is found to be made, and its password is not lost.
func TestClientLostAnswer(t *testing.T) {
	d, v := vaultDesk(t)
	dir, passwords := manifests(t, map[string]string{"a.yaml": "name: web1\n---\nname: web2\n"}), t.TempDir()
	lostAnswers(v)
	added := d.json("add", "web1")
	changed := d.json("passwd", "web1")
	d.run(0, "disable", "web1")
	_, errs := d.run(0, "apply", dir, "--passwords-dir", passwords)
	found(v)
	mentions(t, errs, "1 created")
	text, err := os.ReadFile(filepath.Join(passwords, "web2"))
	if len(added.Password) != 32 || len(changed.Password) != 32 || len(text) != 33 || changed.OldPasswordID != added.PasswordID {
		t.Errorf("got %+v, %+v, %q, %v", added, changed, text, err)
	}
	if id := newestID(d, "web1"); id != changed.PasswordID {
		t.Errorf("got password %s, want %s", id, changed.PasswordID)
	}
	if n := len(v.Data("postroad/clients/web1")); n != 3 {
		t.Errorf("it was written %d times, want 3", n)
	}
}

// TestClientUnclear: nobody answers whether a password is in force. It is handed over with what is to be done.
func TestClientUnclear(t *testing.T) {
	d, v := vaultDesk(t)
	for _, args := range [][]string{{"add", "web1"}, {"passwd", "web1"}} {
		lostVault(v)
		out, errs := d.run(1, args...)
		found(v)
		mentions(t, errs, "client web1: perhaps", "on standard output may be in force", "shows "+newestID(d, "web1")+" as the newest one of web1", "nobody answers whether this has happened")
		if len(strings.TrimSpace(out)) != 32 {
			t.Errorf("%v: got %q on standard output, want the password", args, out)
		}
	}
	if n := len(d.listed("clients")["web1"].Passwords); n != 2 {
		t.Errorf("got %d passwords, want the old one too", n)
	}
	lostVault(v)
	out, _ := d.run(1, "passwd", "web1", "--json")
	found(v)
	mentions(t, out, `"unclear":true`, `"password":"`, `"password_id":"`+newestID(d, "web1")+`"`)

	lostVault(v)
	out, errs := d.run(1, "apply", manifests(t, map[string]string{"a.yaml": "name: web1\n---\nname: web2\n"}))
	found(v)
	mentions(t, errs, "client web2: perhaps created", "may be in force", newestID(d, "web2"))
	if password, is := strings.CutPrefix(strings.TrimSpace(out), "web2 "); !is || len(password) != 32 {
		t.Errorf("got %q on standard output, want the password", out)
	}

	// In a file, which stays; the same again finds the client there.
	passwords, dir := t.TempDir(), manifests(t, map[string]string{"a.yaml": "name: web3\n"})
	lostVault(v)
	out, errs = d.run(1, "apply", dir, "--passwords-dir", passwords)
	found(v)
	names, err := filepath.Glob(filepath.Join(passwords, ".web3-*"))
	if err != nil || len(names) != 1 || out != "" {
		t.Fatalf("got %v, %q, %v, want one file", names, out, err)
	}
	if text, err := os.ReadFile(names[0]); err != nil || len(text) != 33 {
		t.Errorf("got %q, %v, want the password", text, err)
	}
	mentions(t, errs, "in "+names[0]+" may be in force", newestID(d, "web3"))
	d.run(0, "apply", dir, "--passwords-dir", passwords)
	if _, err := os.Stat(names[0]); err != nil {
		t.Error(err)
	}
}

// TestClientNotMade: a change that has not happened leaves nothing behind, and no password is printed.
func TestClientNotMade(t *testing.T) {
	d, v := vaultDesk(t)
	passwords, dir := t.TempDir(), manifests(t, map[string]string{"a.yaml": "name: web1\n"})
	for _, args := range [][]string{{"add", "web1"}, {"apply", dir, "--passwords-dir", passwords}} {
		v.LoseAnswers(func(method, path string) bool {
			v.Seal(isWrite(method, path))
			return false
		})
		out, errs := d.run(1, args...)
		found(v)
		if out != "" || strings.Contains(errs, "may be in force") || len(v.Data("postroad/clients/web1")) > 0 {
			t.Errorf("%v: got %q, %q", args, out, errs)
		}
	}
	if entries, err := os.ReadDir(passwords); err != nil || len(entries) > 0 {
		t.Errorf("got %v, %v", entries, err)
	}
}

// TestClientInterrupted: the change is under way when the command is interrupted. It is made, and the password is there.
func TestClientInterrupted(t *testing.T) {
	d, v := vaultDesk(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	v.LoseAnswers(func(method, path string) bool {
		if isWrite(method, path) {
			cancel()
			time.Sleep(200 * time.Millisecond)
		}
		return false
	})
	var out, errs bytes.Buffer
	status := run(ctx, []string{"client", "-c", d.file, "add", "web1"}, &out, &errs)
	found(v)
	if status != 0 || len(strings.TrimSpace(out.String())) != 32 {
		t.Errorf("got %d, %q, %s, want the password", status, out.String(), errs.String())
	}
	newestID(d, "web1")
}
