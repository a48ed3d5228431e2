package rewrite

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Fault is one thing that is wrong with a file, or that Lint doubts.
type Fault struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"` // 0: the file as a whole
	Text string `json:"text"`           // what is wrong and what to do
}

// Error prints file:line: text.
func (f Fault) Error() string {
	if f.Line == 0 {
		return f.File + ": " + f.Text
	}
	return f.File + ":" + strconv.Itoa(f.Line) + ": " + f.Text
}

// Faults are all things that are wrong with the files, in their order.
type Faults []Fault

// Error prints one line for each.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, one := range f {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// maxFaults bounds what is said about a file that is something else entirely.
const maxFaults = 100

// reader gathers the faults of one file.
type reader struct {
	file   string
	faults Faults
}

func (r *reader) fault(line int, format string, args ...any) {
	if len(r.faults) < maxFaults {
		r.faults = append(r.faults, Fault{r.file, line, fmt.Sprintf(format, args...)})
	}
}

// sorted orders the faults of one file by line.
func (f Faults) sorted() Faults {
	slices.SortStableFunc(f, func(a, b Fault) int { return a.Line - b.Line })
	return f
}

// Causes of a refused recipient; match them with errors.Is.
var (
	ErrUnknown = errors.New("no alias of that name in a domain that has nothing else")
	ErrLoop    = errors.New("aliases lead back to themselves, or go too deep")
	ErrTooMany = errors.New("an alias has too many recipients")
)

// Error refuses one recipient. Code, Enhanced and Text are for the client; Err
// is for the log.
type Error struct {
	Code     int
	Enhanced [3]int
	Text     string
	Err      error
}

// Error prints the reply and its cause.
func (e *Error) Error() string {
	return fmt.Sprintf("%d %d.%d.%d %s: %v", e.Code, e.Enhanced[0], e.Enhanced[1], e.Enhanced[2], e.Text, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// The replies (RFC 5321 §4.2, RFC 3463).
func unknown(cause string) *Error {
	return &Error{550, [3]int{5, 1, 1}, "no such recipient here", fmt.Errorf("%s: %w", cause, ErrUnknown)}
}

func loop(cause string) *Error {
	return &Error{554, [3]int{5, 4, 6}, "this recipient is an alias that leads back to itself", fmt.Errorf("%s: %w", cause, ErrLoop)}
}

func tooMany(cause string) *Error {
	return &Error{452, [3]int{4, 5, 3}, "this recipient is an alias of too many", fmt.Errorf("%s: %w", cause, ErrTooMany)}
}
