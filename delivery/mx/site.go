package mx

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// maxSiteBytes bounds a site name: it is a label and a key.
const maxSiteBytes = 120

// siteName is the canonical name of the site that an MX set makes: the same
// for the same hosts in any order and preference. A single host is its own
// name, several are written with what they share at the end:
// (alt1|alt2).mx.example.net. A name that gets too long ends in a hash instead.
func siteName(records []MX) string {
	names := make([]string, len(records))
	for i, m := range records {
		names[i] = strings.ToLower(m.Host)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 1 {
		return names[0]
	}
	suffix := commonSuffix(names)
	heads := make([]string, len(names))
	for i, name := range names {
		heads[i] = strings.TrimSuffix(name, suffix)
	}
	site := "(" + strings.Join(heads, "|") + ")" + suffix
	if len(site) <= maxSiteBytes {
		return site
	}
	sum := sha256.Sum256([]byte(strings.Join(names, "|")))
	head, tail := "("+heads[0], "|#"+hex.EncodeToString(sum[:4])+")"
	if len(tail)+len(suffix) < maxSiteBytes {
		tail += suffix
	}
	return head[:min(len(head), maxSiteBytes-len(tail))] + tail
}

// commonSuffix is the run of whole labels, with the dot before it, that ends
// all names and leaves at least one label of each.
func commonSuffix(names []string) string {
	suffix := names[0]
	for {
		dot := strings.IndexByte(strings.TrimPrefix(suffix, "."), '.')
		if dot < 0 {
			return ""
		}
		suffix = suffix[dot+len(suffix)-len(strings.TrimPrefix(suffix, ".")):]
		if !slices.ContainsFunc(names, func(name string) bool { return !strings.HasSuffix(name, suffix) }) {
			return suffix
		}
	}
}
