package smtpc

import (
	"strconv"
	"strings"
)

// maxKeywords bounds the EHLO keywords that are kept.
const maxKeywords = 64

// Extensions are the EHLO keywords of a host (RFC 5321 §4.1.1.1). The zero
// value is that of a host that only speaks HELO.
type Extensions struct {
	params map[string]string // by keyword in upper case
}

// parseEhlo reads the answer to EHLO: the first line names the host, each
// further one is a keyword, in any case (RFC 5321 §2.4), and its parameters.
// "AUTH=LOGIN" is an old way to write "AUTH LOGIN".
func parseEhlo(r Reply) Extensions {
	e := Extensions{params: make(map[string]string, len(r.Lines))}
	for _, line := range r.Lines[1:] {
		line = strings.TrimSpace(line)
		end := strings.IndexAny(line, " \t=")
		keyword, param := line, ""
		if end >= 0 {
			keyword, param = line[:end], strings.TrimSpace(line[end+1:])
		}
		keyword = strings.ToUpper(keyword)
		if _, again := e.params[keyword]; again || keyword == "" || len(e.params) == maxKeywords {
			continue
		}
		e.params[keyword] = param
	}
	return e
}

// Has reports that the host offers keyword, in any case.
func (e Extensions) Has(keyword string) bool {
	_, ok := e.Param(keyword)
	return ok
}

// Param gives the text behind a keyword.
func (e Extensions) Param(keyword string) (string, bool) {
	param, ok := e.params[strings.ToUpper(keyword)]
	return param, ok
}

// MaxSize is the limit that SIZE gives; 0 is none (RFC 1870 §3).
func (e Extensions) MaxSize() int64 {
	param, _ := e.Param("SIZE")
	n, err := strconv.ParseInt(param, 10, 64)
	if err != nil || n < 0 {
		return 0
	}
	return n
}
