package keyring

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"
)

const (
	// stateExtension is that of the file that tells a key's state.
	stateExtension = ".json"
	// entryVersion is the format of that file.
	entryVersion = 1

	// maxSteps and maxText bound a state file far below maxFileBytes.
	maxSteps = 64
	maxText  = 400
)

// document is a state file.
type document struct {
	Version int `json:"version"`
	Entry
}

// Gone reports that a key in this state has no private half any more.
func (s State) Gone() bool { return s == Revoked || s == Removed }

// known reports that there is such a state.
func (s State) known() bool {
	switch s {
	case Generated, Published, Active, Retiring, Revoked, Removed:
		return true
	}
	return false
}

// encodeEntry writes a state file and sets the revision of e to match.
func encodeEntry(e *Entry) ([]byte, error) {
	data, err := json.MarshalIndent(document{entryVersion, *e}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode state of %s: %w", e.Selector, err)
	}
	data = append(data, '\n')
	e.Revision = revision(data)
	return data, nil
}

func revision(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:16])
}

// decodeEntry reads a state file. Errors read as the rest of a sentence about
// the file.
func decodeEntry(data []byte, domain, selector string) (Entry, error) {
	var version struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &version); err != nil {
		return Entry{}, fmt.Errorf("is damaged: %w", err)
	}
	if version.Version > entryVersion {
		return Entry{}, fmt.Errorf("has format %d and this Postroad knows up to %d: run the newer one", version.Version, entryVersion)
	}
	var d document // and nothing follows it: Unmarshal has looked
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return Entry{}, fmt.Errorf("is damaged: %w", err)
	}
	if err := d.check(domain, selector); err != nil {
		return Entry{}, err
	}
	d.Revision = revision(data)
	return d.Entry, nil
}

func (d *document) check(domain, selector string) error {
	switch n := len(d.History); {
	case d.Version != entryVersion:
		return fmt.Errorf("is damaged: version %d, want %d", d.Version, entryVersion)
	case d.Domain != domain || d.Selector != selector:
		return fmt.Errorf("speaks of key %q of %q: move it to where it belongs", d.Selector, d.Domain)
	case !d.State.known():
		return fmt.Errorf("is damaged: state %q, want generated, published, active, retiring, revoked or removed", d.State)
	case d.Algorithm != RSA && d.Algorithm != Ed25519:
		return fmt.Errorf("is damaged: algorithm %q", d.Algorithm)
	case n == 0 || d.History[n-1].State != d.State:
		return errors.New("is damaged: its history does not end with its state")
	case !slices.IsSortedFunc(d.History, func(a, b Step) int { return a.At.Compare(b.At) }):
		return errors.New("is damaged: its history is not in order")
	}
	return nil
}

// step brings e into another state; the latest steps of a long history stay.
func (e *Entry) step(to State, why string, now time.Time) {
	if last := e.Since(); now.Before(last) {
		now = last // the clock was set back
	}
	e.State = to
	steps := append(slices.Clone(e.History), Step{to, now, cut(why)})
	e.History = steps[max(0, len(steps)-maxSteps):]
}

func cut(text string) string {
	if len(text) <= maxText {
		return text
	}
	return string(bytes.ToValidUTF8([]byte(text[:maxText]), nil)) + "…"
}

// entryOf describes a key, without a state.
func entryOf(k Key) Entry {
	bits := 256
	if public, is := k.Signer.Public().(*rsa.PublicKey); is {
		bits = public.N.BitLen()
	}
	return Entry{Domain: k.Domain, Selector: k.Selector, Algorithm: k.Algorithm, Bits: bits, Record: Record(k)}
}

// byHand is the entry of a key that was put there without a state.
func byHand(k Key) Entry {
	e := entryOf(k)
	e.State = Active
	e.Revision = "by hand " + revision([]byte(e.Record))
	return e
}

// readState reads the state file of a key in dir. fs.ErrNotExist says that it
// has none, ErrBadKey that the file cannot be used; other errors may pass.
func readState(dir, domain, selector string) (Entry, error) {
	path := filepath.Join(dir, selector+stateExtension)
	data, fault, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Entry{}, err
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read state file: %w", err)
	}
	var e Entry
	if fault == nil {
		e, fault = decodeEntry(data, domain, selector)
	}
	if fault != nil {
		return Entry{}, fmt.Errorf("state file %s %w: %w", path, fault, ErrBadKey)
	}
	return e, nil
}
