package bounce

import (
	"bytes"
	"io"
	"strings"
)

// original is the message, or its header, as the last part of the report.
type original struct {
	section
	isFull bool
}

// readOriginal reads what is to be returned. The types of RFC 5322 messages may not be encoded (RFC 2046 §5.2.1), so a
// whole message with 8-bit content comes back as its header; the types of RFC 6532 messages may (RFC 6533 §4.4).
func (r Report) readOriginal() (original, error) {
	if r.Original == nil {
		return original{}, nil
	}
	isWhole := r.ReturnFull && r.Size <= MaxReturn && r.worst() == Failed // RFC 3461 §4.3: RET is about failures
	limit := int64(maxReturnHeader)
	if isWhole {
		limit = MaxReturn
	}
	data, err := io.ReadAll(io.LimitReader(r.Original, limit+1))
	if err != nil {
		return original{}, err
	}
	isWhole = isWhole && int64(len(data)) <= limit
	if isWhole && (isSevenBit(data) || r.SMTPUTF8) {
		o := original{isFull: true, section: section{
			contentType: "message/rfc822", description: "Undelivered message", body: data}}
		if !isSevenBit(data) {
			o.contentType = "message/global"
			o.encode()
		}
		return o, nil
	}
	header := Header(data, maxReturnHeader)
	o := original{section: section{contentType: "text/rfc822-headers", description: "Header of the message", body: header}}
	switch {
	case isSevenBit(header):
	case r.SMTPUTF8:
		o.contentType = "message/global-headers"
		o.encode()
	default:
		o.contentType = "text/rfc822-headers; charset=unknown-8bit"
		o.encode()
	}
	return o, nil
}

// Header cuts the header off the start of a message: whole fields, at most limit octets, without the empty line.
func Header(message []byte, limit int) []byte {
	end := 0 // of the last whole field
	for at := 0; at < len(message); {
		size := bytes.IndexByte(message[at:], '\n') + 1
		line := message[at : at+size]
		if size == 0 {
			break // the line is cut off
		}
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return message[:at]
		}
		if at += size; at > limit {
			return message[:end]
		}
		if at < len(message) && message[at] != ' ' && message[at] != '\t' {
			end = at // the next line does not belong to this field
		}
	}
	return message[:end]
}

// IsAutomatic reports a header of mail that no person waits behind: nobody wants a delay notice for it (RFC 3834 §2).
func IsAutomatic(header []byte) bool {
	for line := range bytes.Lines(header) {
		name, value, found := strings.Cut(string(line), ":")
		if !found {
			continue
		}
		value = strings.ToLower(strings.TrimSpace(value))
		switch strings.ToLower(name) {
		case "auto-submitted":
			if !strings.HasPrefix(value, "no") {
				return true
			}
		case "precedence":
			if value == "bulk" || value == "list" || value == "junk" {
				return true
			}
		case "list-id", "list-unsubscribe":
			return true
		}
	}
	return false
}

// isSevenBit reports that data may stand in a 7-bit part as it is: ASCII in lines of at most 998 octets (RFC 2045 §2.7).
func isSevenBit(data []byte) bool {
	length := 0
	for _, c := range data {
		length++
		if c == '\n' {
			length = 0
		}
		if c >= 0x80 || c == 0 || length > 999 {
			return false
		}
	}
	return true
}
