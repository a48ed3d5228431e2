package smtpc

import (
	"strconv"
	"strings"
	"time"
)

// Speaker says whose words a Line has.
type Speaker string

// The speakers.
const (
	Client Speaker = "C" // we
	Server Speaker = "S" // the host
	Note   Speaker = "*" // nobody: what happened
)

// Line is one line of a dialogue as a Tap hears it.
type Line struct {
	At   time.Time
	From Speaker
	Text string // without line end, printable; never credentials or content
}

// Tap hears a dialogue while it goes on. It is called by whoever runs the dialogue, and must not block. A nil Tap costs nothing.
type Tap func(Line)

const (
	hidden         = "[hidden]"
	maxTapped      = 1000 // octets of one line
	maxTappedLines = 100  // lines of one reply, commands of one flight
)

func (t Tap) line(from Speaker, text string) {
	if t != nil {
		t(Line{At: time.Now(), From: from, Text: clean(text, maxTapped)})
	}
}

func (t Tap) note(parts ...string) {
	if t != nil {
		t.line(Note, strings.Join(parts, ""))
	}
}

// commands tells the lines of a flight.
func (t Tap) commands(flight string) {
	if t == nil {
		return
	}
	n := 0
	for line := range strings.SplitSeq(strings.TrimSuffix(flight, "\r\n"), "\r\n") {
		if n++; n > maxTappedLines {
			t.note("[more commands]")
			return
		}
		t.line(Client, line)
	}
}

// content tells how much of it went.
func (t Tap) content(octets int64) {
	if t != nil {
		t.line(Client, "["+strconv.FormatInt(octets, 10)+" octets of content]")
	}
}

// reply tells the lines of a reply. What a host says in a login may repeat what we said.
func (t Tap) reply(r Reply) {
	if t == nil {
		return
	}
	code := strconv.Itoa(r.Code)
	if r.Phase == PhaseAuth && r.Code/100 == 3 {
		t.line(Server, code+" "+hidden)
		return
	}
	for i, line := range r.Lines {
		mark := "-"
		if i == len(r.Lines)-1 {
			mark = " "
		}
		if i == maxTappedLines {
			t.note("[more lines]")
			return
		}
		enhanced := r.Enhanced
		if enhanced != "" {
			enhanced += " "
		}
		t.line(Server, code+mark+enhanced+line)
	}
}
