//go:build poweron

package power

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"
)

// TestSyncsAtTheMomentOfTheCut finds out which syncs that said "done" the cut takes back all the same. A machine without power
// says nothing any more; here a sync may come back while the file system is being shut down, and its journal never be written.
// What was synced before the cut began must be there; nothing may be said to be synced after it has returned.
func TestSyncsAtTheMomentOfTheCut(t *testing.T) {
	d, err := New(t.Context(), t.TempDir(), 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	const writers = 8
	during := 0
	for cut := range 150 {
		var wg sync.WaitGroup
		type call struct{ asked, acked time.Time }
		synced := make([][]call, writers) // of each record whose sync said that it was done
		paths := make([]string, writers)
		for w := range writers {
			paths[w] = filepath.Join(d.Dir(), strconv.Itoa(w))
			f, err := os.Create(paths[w])
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer func() { _ = f.Close() }()
				for n := uint64(1); ; n++ {
					record := bytes.Repeat(binary.BigEndian.AppendUint64(nil, n), 256)
					if _, err := f.Write(record); err != nil {
						return
					}
					asked := time.Now()
					if err := f.Sync(); err != nil {
						return
					}
					synced[w] = append(synced[w], call{asked, time.Now()})
				}
			})
		}
		time.Sleep(time.Duration(20+cut%7) * time.Millisecond)
		begun := time.Now()
		if err := d.Cut(); err != nil {
			t.Fatal(err)
		}
		ended := time.Now()
		wg.Wait()
		if err := d.Mount(t.Context()); err != nil {
			t.Fatal(err)
		}
		for w, times := range synced {
			text, err := os.ReadFile(paths[w])
			if err != nil && len(times) > 0 {
				t.Errorf("cut %d: %v", cut, err)
			}
			there := 0
			for ; len(text) >= 2048 && binary.BigEndian.Uint64(text[2040:]) == uint64(there+1); text = text[2048:] {
				there++
			}
			for n := there; n < len(times); n++ {
				// A busy machine may learn late that a sync has returned: what it began after the cut tells.
				switch s := times[n]; {
				case s.acked.Before(begun):
					t.Errorf("cut %d: a record that was synced %s before it is gone", cut, begun.Sub(s.acked))
				case s.asked.After(ended):
					t.Errorf("cut %d: a sync that was begun %s after it said that it was done", cut, s.asked.Sub(ended))
				default:
					during++
				}
			}
		}
	}
	t.Logf("%d syncs said that they were done while the power went, and were not", during)
}
