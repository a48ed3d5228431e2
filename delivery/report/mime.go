package report

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"slices"
	"strings"

	"postroad/delivery/bounce"
)

// fields are those of a header, by name in lower case.
type fields map[string][]string

// get is the first field of a name.
func (f fields) get(name string) string {
	if list := f[strings.ToLower(name)]; len(list) > 0 {
		return list[0]
	}
	return ""
}

// readFields takes the fields off the start of data, up to an empty line. Lines that are no fields are left out.
func readFields(data []byte) (fields, []byte) {
	f := make(fields)
	last, n := "", 0
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		data = rest
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			return f, data
		}
		if line[0] == ' ' || line[0] == '\t' {
			if list := f[last]; len(list) > 0 && len(list[len(list)-1]) < maxFolded {
				list[len(list)-1] += " " + string(bytes.TrimSpace(line))
			}
			continue
		}
		name, value, found := strings.Cut(string(line), ":")
		if n++; !found || n > maxFields {
			last = ""
			continue
		}
		last = strings.ToLower(strings.TrimSpace(name))
		f[last] = append(f[last], strings.TrimSpace(value))
	}
	return f, nil
}

// walker goes through the parts of a mail.
type walker struct {
	report *Report
	parts  int
}

// part takes what it can use. header is that of the part.
func (w *walker) part(header fields, body []byte, depth int) {
	if w.parts++; w.parts > MaxParts || depth > MaxDepth {
		return
	}
	kind, params, err := mime.ParseMediaType(header.get("Content-Type"))
	if err != nil {
		kind = "text/plain" // also when none is given (RFC 2045 §5.2)
	}
	if strings.HasPrefix(kind, "multipart/") {
		w.multipart(body, params["boundary"], depth)
		return
	}
	r := w.report
	switch kind {
	case "message/delivery-status", "message/global-delivery-status":
		r.readStatus(decode(header, body))
	case "message/feedback-report":
		r.readFeedback(decode(header, body))
	case "text/rfc822-headers", "message/rfc822", "message/global", "message/global-headers":
		if r.Header == nil {
			r.Header = bounce.Header(slices.Concat(decode(header, body), []byte("\r\n\r\n")), maxHeader)
		}
	case "text/plain":
		if r.Text == "" {
			text := decode(header, body)
			r.Text = bounce.Clean(string(text[:min(len(text), 8*maxText)]), maxText)
		}
	}
}

func (w *walker) multipart(body []byte, boundary string, depth int) {
	if boundary == "" || len(boundary) > 200 {
		return
	}
	for parts := multipart.NewReader(bytes.NewReader(body), boundary); ; {
		p, err := parts.NextRawPart()
		if err != nil || w.parts >= MaxParts {
			return
		}
		header := make(fields)
		for name, values := range p.Header {
			header[strings.ToLower(name)] = values
		}
		content, err := io.ReadAll(p)
		w.part(header, content, depth+1) // what is cut off is used as far as it goes
		if err != nil {
			return
		}
	}
}

// decode undoes the transfer encoding, as far as it goes.
func decode(header fields, body []byte) []byte {
	var r io.Reader
	switch strings.ToLower(strings.TrimSpace(header.get("Content-Transfer-Encoding"))) {
	case "base64":
		r = base64.NewDecoder(base64.StdEncoding, bytes.NewReader(body))
	case "quoted-printable":
		r = quotedprintable.NewReader(bytes.NewReader(body))
	default:
		return body
	}
	data, _ := io.ReadAll(r) // what came before an error is of use
	return data
}
