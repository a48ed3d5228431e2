package tlsrpt

import (
	"net/url"
	"strings"

	"postroad/queue/address"
)

// maxDestinations bounds the places that one domain can have us write to.
const maxDestinations = 4

// parseRecord gives the URIs in the TXT records of _smtp._tls (RFC 8460 §3): exactly one may begin with v=TLSRPTv1. Those that are neither
// mailto nor https are left out.
func parseRecord(records []string) []string {
	var record string
	found := 0
	for _, r := range records {
		if version, _, more := strings.Cut(r, ";"); more && strings.TrimRight(version, " \t") == "v=TLSRPTv1" {
			record = r
			found++
		}
	}
	if found != 1 {
		return nil
	}
	var uris []string
	for field := range strings.SplitSeq(record, ";") {
		key, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
		if strings.TrimRight(key, " \t") != "rua" {
			continue
		}
		for text := range strings.SplitSeq(value, ",") {
			text = strings.Trim(text, " \t")
			if _, isMail := mailbox(text); (isMail || isHTTPS(text)) && len(uris) < maxDestinations {
				uris = append(uris, text)
			}
		}
		return uris
	}
	return nil
}

// mailbox is the address in a mailto URI; what else it says is left alone.
func mailbox(uri string) (address.Path, bool) {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "mailto" {
		return address.Path{}, false
	}
	text, err := url.PathUnescape(u.Opaque)
	if err != nil {
		return address.Path{}, false
	}
	p, err := address.Parse(text)
	return p, err == nil && !p.IsNull() && !address.IsLiteral(p.Domain)
}

func isHTTPS(uri string) bool {
	u, err := url.Parse(uri)
	return err == nil && u.Scheme == "https" && u.Hostname() != "" && u.User == nil
}
