package bench

import (
	"bytes"
	"fmt"
	"time"
)

// tokenField is the header field that carries a message's token.
const tokenField = "X-Bench-Token: "

// bodyLine is what bodies are made of: an ordinary line of text, 66 octets with its end.
const bodyLine = "The riders change their horses at each station, the mail does not.\r\n"

// writeMessage writes a message of exactly o.Size octets.
func writeMessage(w *bytes.Buffer, o Options, recipient, token string) {
	begin := w.Len()
	fmt.Fprintf(w, "From: Bench <%s>\r\nTo: <%s>\r\nSubject: load %s\r\nDate: %s\r\nMessage-ID: <%s@bench.example>\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n%s%s\r\n\r\n",
		o.Sender, recipient, token, time.Now().UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"), token, tokenField, token)
	for o.Size-(w.Len()-begin) >= 2*len(bodyLine) {
		w.WriteString(bodyLine)
	}
	for o.Size-(w.Len()-begin) > 2 {
		w.WriteByte('=')
	}
	w.WriteString("\r\n")
}

// tokenOf finds the token in a message that came back, and whether a signature stands in its header.
func tokenOf(data []byte) (token string, signed bool) {
	header, _, _ := bytes.Cut(data, []byte("\r\n\r\n"))
	for line := range bytes.Lines(header) {
		line = bytes.TrimRight(line, "\r\n")
		if value, ok := bytes.CutPrefix(line, []byte(tokenField)); ok {
			token = string(value)
		}
		if bytes.HasPrefix(line, []byte("DKIM-Signature:")) {
			signed = true
		}
	}
	return token, signed
}
