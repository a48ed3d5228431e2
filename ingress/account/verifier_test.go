package account

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The example of RFC 7677 §3: user "user", password "pencil".
const (
	exampleSCRAM   = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	exampleMessage = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096," +
		"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	exampleProof     = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
	exampleSignature = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
)

func TestSCRAMOfTheRFC(t *testing.T) {
	s, err := ParseSCRAM(exampleSCRAM)
	if err != nil {
		t.Fatal(err)
	}
	made, err := newSCRAM("pencil", s.Salt, s.Iterations)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(exampleSCRAM, made.String()); diff != "" {
		t.Errorf("made of the password (-want +got):\n%s", diff)
	}
	signature, ok := s.proof(decode(t, exampleProof), exampleMessage)
	if want := decode(t, exampleSignature); !ok || string(signature) != string(want) {
		t.Errorf("got %x, %t, want %x", signature, ok, want)
	}
	wrong := decode(t, exampleProof)
	wrong[7] ^= 1
	for _, proof := range [][]byte{wrong, nil, wrong[:31], make([]byte, 32)} {
		if _, ok := s.proof(proof, exampleMessage); ok {
			t.Errorf("proof %x was taken", proof)
		}
	}
	if _, ok := s.proof(decode(t, exampleProof), exampleMessage+"x"); ok {
		t.Error("a proof of another message was taken")
	}
}

// TestArgon2idOfOthers reads a hash that the reference program made:
// echo -n "password" | argon2 somesalt -id -t 2 -m 16 -p 1 -l 32 -e
func TestArgon2idOfOthers(t *testing.T) {
	a, err := ParseArgon2id("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	if err != nil {
		t.Fatal(err)
	}
	if !a.matches("password") || a.matches("Password") {
		t.Error("got the wrong answers")
	}
}

func TestBadVerifiers(t *testing.T) {
	const salt, key = "c29tZXNhbHQ", "CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	argon := func(costs string) string { return "$argon2id$v=19$" + costs + "$" + salt + "$" + key }
	scram := func(from, to string) string { return strings.Replace(exampleSCRAM, from, to, 1) }
	parsers := map[string]func(string) error{
		"SCRAM":    func(s string) error { _, err := ParseSCRAM(s); return err },
		"argon2id": func(s string) error { _, err := ParseArgon2id(s); return err },
	}
	tests := []struct{ parser, text, want string }{
		{"SCRAM", "", "want SCRAM-SHA-256$"},
		{"SCRAM", scram("SHA-256", "SHA-1"), "want SCRAM-SHA-256$"},
		{"SCRAM", scram(":W22", "W22"), "want SCRAM-SHA-256$"},
		{"SCRAM", exampleSCRAM + "$", "want SCRAM-SHA-256$"},
		{"SCRAM", scram("4096", "1"), "iterations: want 4096 to 600000"},
		{"SCRAM", scram("4096", "4000000000"), "iterations: want 4096 to 600000"},
		{"SCRAM", scram("4096", "99999999999999999999"), "iterations: want a plain number"},
		{"SCRAM", scram("4096", "+4096"), "iterations: want a plain number"},
		{"SCRAM", scram("4096", "04096"), "iterations: want a plain number"},
		{"SCRAM", scram("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaA=="), "salt: want 8 to 64"},
		{"SCRAM", scram("W22ZaJ0SNY7soEsUEjb6gQ==", "W22ZaJ0SNY7soEsUEjb6gQ"), "salt: want 8 to 64"},
		{"SCRAM", scram("qY=:", "qY:"), "StoredKey: want 32 octets"},
		{"SCRAM", scram(":wfPL", ":"), "ServerKey: want 32 octets"},
		{"SCRAM", scram(":wfPL", ":wf\nPL"), "do not belong there"},
		{"SCRAM", exampleSCRAM + strings.Repeat("A", 600), "longer than 512"},
		{"argon2id", "", "want $argon2id$v=19$"},
		{"argon2id", strings.Replace(argon("m=65536,t=3,p=1"), "argon2id", "argon2i", 1), "want $argon2id$v=19$"},
		{"argon2id", strings.Replace(argon("m=65536,t=3,p=1"), "v=19", "v=16", 1), "want v=19"},
		{"argon2id", argon("m=65536,t=3"), "want $argon2id$v=19$"},
		{"argon2id", argon("t=3,m=65536,p=1"), "want $argon2id$v=19$"},
		{"argon2id", argon("m=8,t=3,p=1"), "m=8: want 7168 to 131072"},
		{"argon2id", argon("m=4194304,t=3,p=1"), "m=4194304: want 7168 to 131072"},
		{"argon2id", argon("m=65536,t=0,p=1"), "t=0: want 1 to 10"},
		{"argon2id", argon("m=65536,t=4294967295,p=1"), "t=4294967295: want 1 to 10"},
		{"argon2id", argon("m=65536,t=3,p=255"), "p=255: want 1 to 4"},
		{"argon2id", strings.Replace(argon("m=65536,t=3,p=1"), salt, "c29", 1), "salt: want 8 to 64"},
		{"argon2id", strings.Replace(argon("m=65536,t=3,p=1"), key, "CTFhFdXPJO1aFaMaO6", 1), "key: want 16 to 64"},
		{"argon2id", argon("m=65536,t=3,p=1") + strings.Repeat("A", 600), "longer than 512"},
	}
	for _, tt := range tests {
		if err := parsers[tt.parser](tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s %q: got %v, want %q", tt.parser, tt.text, err, tt.want)
		}
	}
}

func TestGeneratePassword(t *testing.T) {
	seen := make(map[rune]int)
	for range 2000 {
		p := GeneratePassword()
		if len(p) != 32 || strings.ContainsAny(p, "0O1Il5S") {
			t.Fatalf("got %q", p)
		}
		if prepared, err := prepare(p); err != nil || prepared != p {
			t.Fatalf("%q prepared: got %q, %v", p, prepared, err)
		}
		for _, r := range p {
			seen[r]++
		}
	}
	if len(seen) != len(alphabet) {
		t.Errorf("got %d characters, want %d", len(seen), len(alphabet))
	}
	mean := 2000 * 32 / len(alphabet)
	for r, n := range seen {
		if n < mean*3/4 || n > mean*5/4 { // nine standard deviations
			t.Errorf("%q came %d times, want about %d", r, n, mean)
		}
	}
}

// TestPrepare has the examples of RFC 4013 §3.
func TestPrepare(t *testing.T) {
	for _, tt := range []struct{ in, want, err string }{
		{"I\u00adX", "IX", ""},
		{"user", "user", ""},
		{"USER", "USER", ""},
		{"\u00aa", "a", ""},
		{"\u2168", "IX", ""},
		{"a\u00a0b", "a b", ""},
		{"pass word", "pass word", ""},
		{"\u0007", "", "does not allow"},
		{"\u06271", "", "does not allow"},
		{"", "", "empty"},
		{"\u00ad", "", "nothing of it is left"},
		{"\xff", "", "not UTF-8"},
		{strings.Repeat("x", 1025), "", "longer than 1024"},
	} {
		got, err := prepare(tt.in)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%q: got %q, %v, want %q, %q", tt.in, got, err, tt.want, tt.err)
		}
	}
	for password, good := range map[string]bool{"1234567": false, "12345678": true, "äöüäöüä": false, "äöüäöüäö": true, "1234567\x00": false} {
		if err := CheckPassword(password); (err == nil) != good {
			t.Errorf("%q: got %v", password, err)
		}
	}
}

// TestSetPassword changes a password again and again.
func TestSetPassword(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c := &Client{Name: "web1"}
	set := func(kind Kind, grace time.Duration) []Password {
		t.Helper()
		dropped, err := c.SetPassword("Some long word", kind, now, grace)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := encodeRecord(c); err != nil {
			t.Fatal(err)
		}
		return dropped
	}
	must := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %+v", what, c.Passwords)
		}
	}
	must("nothing was dropped", len(set(Generated, time.Hour)) == 0)
	must("one password without an end", len(c.Passwords) == 1 && c.Passwords[0].NotAfter.IsZero())
	first := c.Passwords[0]

	now = now.Add(time.Minute)
	must("nothing was dropped", len(set(Generated, time.Hour)) == 0)
	must("the old one has an hour", len(c.Passwords) == 2 && c.Passwords[1].ID == first.ID && c.Passwords[1].NotAfter.Equal(now.Add(time.Hour)))
	must("both have one salt", c.Passwords[0].SCRAM.sameSalt(c.Passwords[1].SCRAM))
	second := c.Passwords[0]

	now = now.Add(time.Minute)
	dropped := set(Generated, 2*time.Hour)
	must("the first was dropped", len(dropped) == 1 && dropped[0].ID == first.ID)
	must("the second has two hours", len(c.Passwords) == 2 && c.Passwords[1].ID == second.ID && c.Passwords[1].NotAfter.Equal(now.Add(2*time.Hour)))

	now = now.Add(3 * time.Hour)
	must("the second had ended", len(set(ChosenSCRAM, time.Hour)) == 0)
	must("salt and iterations stay during the grace", c.Passwords[0].SCRAM.sameSalt(c.Passwords[1].SCRAM))

	dropped = set(ChosenSCRAM, 0)
	must("without grace both are dropped", len(dropped) == 2 && len(c.Passwords) == 1)
	must("and all is new", !c.Passwords[0].SCRAM.sameSalt(first.SCRAM) && c.Passwords[0].SCRAM.Iterations == chosenIterations)

	must("nothing was dropped", len(set(Chosen, time.Hour)) == 0)
	must("argon2id beside SCRAM, the newest by its date", c.Passwords[0].Argon2id != nil && c.Passwords[1].SCRAM != nil && c.Passwords[0].Created.After(c.Passwords[1].Created))
	if _, err := c.SetPassword("", Chosen, now, 0); err == nil {
		t.Error("an empty password was taken")
	}

	// A grace that ends sooner than the new one would is not made longer.
	c.Passwords = c.Passwords[:1]
	end := now.Add(time.Minute)
	c.Passwords[0].NotAfter = end
	set(Generated, time.Hour)
	must("the end stays", c.Passwords[1].NotAfter.Equal(end))
}

func FuzzSCRAM(f *testing.F) {
	f.Add(exampleSCRAM)
	f.Add("SCRAM-SHA-256$4096:$:")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSCRAM(text)
		if err == nil && (s.String() != text || s.Iterations > maxIterations || len(s.Salt) > maxSaltOctets) {
			t.Errorf("%q: got %v", text, s)
		}
	})
}

func FuzzArgon2id(f *testing.F) {
	f.Add("$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc")
	f.Add("$argon2id$v=19$m=4294967296,t=0,p=256$$")
	f.Fuzz(func(t *testing.T, text string) {
		a, err := ParseArgon2id(text)
		if err == nil && (a.String() != text || a.Memory > maxArgonMemory || a.Time > maxArgonTime || a.Lanes > maxArgonLanes) {
			t.Errorf("%q: got %v", text, a)
		}
	})
}
