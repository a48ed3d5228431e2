package txt

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"strings"

	"github.com/miekg/dns"
)

const (
	maxKeyFileBytes = 16 << 10
	minSecretOctets = 16
	defaultHMAC     = "hmac-sha256"
)

// tsigKey is a key shared with a name server (RFC 8945 §4.2).
type tsigKey struct {
	name      string // with the final dot
	algorithm string // with the final dot
	secret    string // base64
}

// readKey reads the key file and checks it against the options.
func readKey(o UpdateOptions) (tsigKey, error) {
	text, err := readSecretFile(o.KeyFile)
	if err != nil {
		return tsigKey{}, fmt.Errorf("TSIG key: %w", err)
	}
	bad := func(format string, args ...any) (tsigKey, error) {
		return tsigKey{}, fmt.Errorf("TSIG key: %s "+format, append([]any{o.KeyFile}, args...)...)
	}
	k := tsigKey{secret: strings.TrimSpace(text)}
	if clause := keyClause(text); clause != nil {
		k = *clause
	}
	name, algorithm := strings.ToLower(o.KeyName), strings.ToLower(o.Algorithm)
	switch {
	case name == "" && k.name == "":
		return bad("holds the bare secret: give the key's name too")
	case name != "" && k.name != "" && dns.Fqdn(name) != dns.Fqdn(k.name):
		return bad("names the key %q, not %q", k.name, o.KeyName)
	case algorithm != "" && k.algorithm != "" && dns.Fqdn(algorithm) != dns.Fqdn(k.algorithm):
		return bad("is for %s, not for %s", k.algorithm, o.Algorithm)
	}
	k.name, k.algorithm = cmp.Or(k.name, name), cmp.Or(k.algorithm, algorithm, defaultHMAC)
	if _, err := cleanName(k.name); err != nil {
		return bad("or the options name the key badly: %w", err)
	}
	k.name, k.algorithm = dns.Fqdn(k.name), dns.Fqdn(k.algorithm)
	if k.algorithm != dns.HmacSHA256 && k.algorithm != dns.HmacSHA512 {
		return tsigKey{}, fmt.Errorf("TSIG key: algorithm %q is not known: want hmac-sha256 or hmac-sha512", bare(k.algorithm))
	}
	secret, err := base64.StdEncoding.DecodeString(k.secret)
	if err != nil {
		return bad("holds no secret: want it in base64, or a key clause as tsig-keygen prints it")
	}
	if len(secret) < minSecretOctets {
		return bad("holds a secret of %d octets, which can be guessed: make one with tsig-keygen", len(secret))
	}
	return k, nil
}

// readSecretFile reads a small file that nobody else may read.
func readSecretFile(path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("no file given: servers take signed updates only")
	}
	info, err := os.Stat(path) // before it is opened: that would wait for the writer of a FIFO
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return "", err
	}
	if mode := info.Mode().Perm(); mode&^0o600 != 0 && runtime.GOOS != "windows" { // where permission bits mean nothing
		return "", fmt.Errorf("%s has mode %04o, others could read or change it: chmod 0600, and replace the key if others had access", path, mode)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKeyFileBytes+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxKeyFileBytes {
		return "", fmt.Errorf("%s is larger than %d octets: leave one key in it", path, maxKeyFileBytes)
	}
	return string(data), nil
}

// keyClause reads the clause that tsig-keygen prints and named.conf takes:
//
//	key "name" { algorithm hmac-sha256; secret "base64"; };
//
// It returns nil if text is none.
func keyClause(text string) *tsigKey {
	clause := regexp.MustCompile(`(?s)^\s*key\s+"?([^"\s{]+)"?\s*\{(.*)\}\s*;?\s*$`).FindStringSubmatch(text)
	if clause == nil {
		return nil
	}
	value := func(field string) string {
		m := regexp.MustCompile(`(?:^|[\s;])` + field + `\s+"?([^"\s;]+)"?\s*;`).FindStringSubmatch(clause[2])
		if m == nil {
			return ""
		}
		return m[1]
	}
	return &tsigKey{name: strings.ToLower(clause[1]), algorithm: strings.ToLower(value("algorithm")), secret: value("secret")}
}
