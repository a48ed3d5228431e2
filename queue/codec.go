package queue

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"postroad/queue/address"
)

// Stored forms. Both begin with a version, because a cluster is upgraded node by node: a reader that meets a newer
// version leaves the mail alone.
//
//	mail: "PRM1", length of the header as 4 octets big endian, header as JSON, content
//	job:  "PRJ1", JSON
const (
	mailMagic = "PRM1"
	jobMagic  = "PRJ1"
)

// ErrNewerFormat says that a newer Postroad wrote this mail or job.
var ErrNewerFormat = errors.New("written by a newer version of postroad")

// ErrCorrupt says that stored bytes are not what was written.
var ErrCorrupt = errors.New("stored data is damaged")

// mailHeader stands before the content of a stored mail.
type mailHeader struct {
	Envelope Envelope `json:"envelope"`
	Parts    int      `json:"parts"`
	Size     int64    `json:"size"`             // octets of the content
	Chunks   int      `json:"chunks,omitempty"` // 0: the content follows this header
}

func encodeMail(h mailHeader, content []byte) ([]byte, error) {
	head, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode envelope: %w", err)
	}
	b := make([]byte, 0, len(mailMagic)+4+len(head)+len(content))
	b = append(b, mailMagic...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(head)))
	b = append(b, head...)
	return append(b, content...), nil
}

// decodeMail returns the header and the content, which shares memory with b.
func decodeMail(b []byte) (mailHeader, []byte, error) {
	var h mailHeader
	rest, err := afterMagic(b, mailMagic)
	if err != nil {
		return h, nil, err
	}
	if len(rest) < 4 {
		return h, nil, fmt.Errorf("mail ends in its length: %w", ErrCorrupt)
	}
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if uint64(n) > uint64(len(rest)) {
		return h, nil, fmt.Errorf("mail header of %d octets in %d: %w", n, len(rest), ErrCorrupt)
	}
	if err := json.Unmarshal(rest[:n], &h); err != nil {
		return h, nil, fmt.Errorf("mail header: %w: %w", err, ErrCorrupt)
	}
	content := rest[n:]
	if h.Chunks == 0 && h.Size != int64(len(content)) {
		return h, nil, fmt.Errorf("mail of %d octets, header says %d: %w", len(content), h.Size, ErrCorrupt)
	}
	return h, content, nil
}

func encodeJob(j *Job) ([]byte, error) {
	b, err := json.Marshal(j)
	if err != nil {
		return nil, fmt.Errorf("encode job: %w", err)
	}
	return append([]byte(jobMagic), b...), nil
}

func decodeJob(b []byte) (Job, error) {
	var j Job
	rest, err := afterMagic(b, jobMagic)
	if err != nil {
		return j, err
	}
	if err := json.Unmarshal(rest, &j); err != nil {
		return j, fmt.Errorf("job: %w: %w", err, ErrCorrupt)
	}
	return j, nil
}

// readJob decodes a job that lies at a subject. One that says to be another than its subject does is damaged, or made up by somebody who may
// publish jobs but not mail: what it says becomes part of subjects.
func readJob(b []byte, where ref) (Job, error) {
	j, err := decodeJob(b)
	if err != nil {
		return j, err
	}
	if j.ID != where.id || j.Domain != where.domain || j.Part != where.part || j.Kind != KindMail && j.Kind != KindDSN {
		return Job{}, fmt.Errorf("job is not that of its subject: %w", ErrCorrupt)
	}
	return j, nil
}

// afterMagic tells a newer version (same letters, another digit) from damage.
func afterMagic(b []byte, magic string) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(b, []byte(magic)); ok {
		return rest, nil
	}
	n := len(magic) - 1
	if len(b) > n && string(b[:n]) == magic[:n] && b[n] > magic[n] && b[n] <= '9' {
		return nil, fmt.Errorf("format %s: %w", b[:n+1], ErrNewerFormat)
	}
	return nil, fmt.Errorf("does not begin with %s: %w", magic, ErrCorrupt)
}

// partition groups the recipients by domain, in the order in which the domains first appear, MaxPartRecipients at
// most in each part. It depends on the envelope alone: every reader must come to the same parts.
func partition(recipients []Recipient) [][]Recipient {
	var parts [][]Recipient
	type kind struct {
		domain string
		owner  address.Path
	}
	open := make(map[kind]int) // index of the part that has room
	for _, r := range recipients {
		k := kind{r.Path.Domain, r.Owner}
		i, ok := open[k]
		if !ok || len(parts[i]) == MaxPartRecipients {
			i = len(parts)
			open[k] = i
			parts = append(parts, nil)
		}
		parts[i] = append(parts[i], r)
	}
	return parts
}
