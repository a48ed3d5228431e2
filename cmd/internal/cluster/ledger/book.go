package ledger

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// Message is one message that was answered 250.
type Message struct {
	Token      string    `json:"token"`
	ID         string    `json:"id"` // from the reply
	Recipients []string  `json:"recipients"`
	Accepted   time.Time `json:"accepted"`
}

// Arrival is one recipient for which the receiver said 250 after the dot, or
// one failed recipient that a notification speaks of.
type Arrival struct {
	Token     string    `json:"token"`
	Recipient string    `json:"rcpt"`
	Report    bool      `json:"report,omitempty"` // a notification says that this recipient failed
	Worker    string    `json:"worker"`           // the process that delivered it
	Begin     time.Time `json:"begin"`            // MAIL
	At        time.Time `json:"at"`               // just before the 250
	Damage    string    `json:"damage,omitempty"` // what is wrong with the content
}

// Comeback is a report that the receiver gave back to the cluster, and that was taken.
type Comeback struct {
	ID        string    `json:"id"`
	Recipient string    `json:"rcpt"` // whose mail has failed, as it says
	At        time.Time `json:"at"`
	Again     bool      `json:"again,omitempty"` // an earlier try broke off: it may have been taken twice
}

// FaultKind is what was done to a process.
type FaultKind string

// The kinds of faults.
const (
	FaultKill      FaultKind = "kill"      // SIGKILL at a random moment
	FaultFailpoint FaultKind = "failpoint" // killed itself at a named step
	FaultExit      FaultKind = "exit"      // ended although nobody killed it
	FaultStop      FaultKind = "stop"      // SIGSTOP until Until
	FaultCut       FaultKind = "cut"       // cut off from its peers until Until
	FaultPower     FaultKind = "power"     // its disk lost what was not synced
)

// Fault is one thing that was done to a process.
type Fault struct {
	Kind    FaultKind `json:"kind"`
	Process string    `json:"process"`
	Store   bool      `json:"store,omitempty"` // the process is part of the queue: everybody's jobs in hand count
	At      time.Time `json:"at"`
	Until   time.Time `json:"until,omitzero"`
	Open    int       `json:"open,omitempty"` // dialogues that were open at the receiver
	Note    string    `json:"note,omitempty"`
}

// Book collects what was seen during a run. It belongs to a process that is
// never killed; its file is for people who look for a cause afterwards.
type Book struct {
	mu       sync.Mutex
	file     *os.File
	w        *bufio.Writer
	messages []Message
	arrivals []Arrival
	faults   []Fault
	back     []Comeback
	want     map[string]bool // recipients that arrived or were reported
	told     map[string]bool // recipients that were reported
	err      error
}

// NewBook writes to path, too.
func NewBook(path string) (*Book, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the book: %w", err)
	}
	return &Book{file: f, w: bufio.NewWriterSize(f, 64<<10), want: make(map[string]bool), told: make(map[string]bool)}, nil
}

func (b *Book) write(kind string, v any) {
	line, err := json.Marshal(map[string]any{kind: v})
	if err == nil {
		_, err = b.w.Write(append(line, '\n'))
	}
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("write the book: %w", err)
	}
}

// Accept notes a 250 that the load client got.
func (b *Book) Accept(m Message) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.messages = append(b.messages, m)
	b.write("accepted", m)
}

// Arrive notes what the receiver is about to say 250 to.
func (b *Book) Arrive(a Arrival) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.arrivals = append(b.arrivals, a)
	b.want[a.Recipient] = true
	if a.Report {
		b.told[a.Recipient] = true
	}
	b.write("arrived", a)
}

// ComeBack notes a report that was taken.
func (b *Book) ComeBack(c Comeback) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.back = append(b.back, c)
	b.write("back", c)
}

// Fault notes what was done to a process.
func (b *Book) Fault(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.faults = append(b.faults, f)
	b.write("fault", f)
}

// Accepted is the number of messages so far.
func (b *Book) Accepted() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.messages)
}

// Faults is the number of faults so far.
func (b *Book) Faults() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.faults)
}

// Open counts the accepted recipients that have neither arrived nor been
// reported yet, and the reports that nobody was told of; those that wait, for an operator too, are counted only when waiting is true.
func (b *Book) Open(waiting bool) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, m := range b.messages {
		for _, r := range m.Recipients {
			a, ok := ParseAddress(r)
			if ok && a.Want != WantCancel && (waiting || !a.waits()) && !b.want[r] {
				n++
			}
		}
	}
	for _, c := range b.back {
		if !b.told[c.Recipient] {
			n++
		}
	}
	return n
}

// Records is what Account works on, less what only the queue knows.
func (b *Book) Records() Records {
	b.mu.Lock()
	defer b.mu.Unlock()
	return Records{
		Messages: append([]Message(nil), b.messages...),
		Arrivals: append([]Arrival(nil), b.arrivals...),
		Faults:   append([]Fault(nil), b.faults...),
		Back:     append([]Comeback(nil), b.back...),
	}
}

// Close writes the rest of the file. The error is that of any write.
func (b *Book) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.w.Flush(); err != nil && b.err == nil {
		b.err = fmt.Errorf("write the book: %w", err)
	}
	if err := b.file.Close(); err != nil && b.err == nil {
		b.err = fmt.Errorf("close the book: %w", err)
	}
	return b.err
}
