package account

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files again")

// golden compares with a file, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func decodeFile(t *testing.T, file string) (*Client, error) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fields, err := decodeRecord(data)
	if err != nil {
		return nil, err
	}
	return Decode("web1", "r", fields)
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("%s: %v, %v", pattern, list, err)
	}
	return list
}

// TestGoodRecords reads records and prints them in their canonical form, which
// reads and prints the same again.
func TestGoodRecords(t *testing.T) {
	for _, file := range files(t, "testdata/good/*.json") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := decodeFile(t, file)
			if err != nil {
				t.Fatal(err)
			}
			printed, err := encodeRecord(c)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, file+".canonical", string(printed))
			fields, err := decodeRecord(printed)
			if err != nil {
				t.Fatal(err)
			}
			again, err := Decode("web1", "r", fields)
			if err != nil {
				t.Fatal(err)
			}
			if twice, err := encodeRecord(again); err != nil || string(twice) != string(printed) {
				t.Errorf("printed again, got %v\n%s", err, twice)
			}
		})
	}
}

// TestFieldsOfASecret: the same fields come from a secrets store, whose API gives
// plain maps with numbers of another type.
func TestFieldsOfASecret(t *testing.T) {
	want, err := decodeFile(t, "testdata/good/host.json")
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(want.Fields())
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	for _, version := range []any{float64(1), 1, json.Number("1")} {
		fields = maps.Clone(fields)
		fields["version"] = version
		got, err := Decode("web1", "r", fields)
		if err != nil {
			t.Fatalf("%T: %v", version, err)
		}
		if diff := cmp.Diff(want.Fields(), got.Fields()); diff != "" {
			t.Errorf("%T (-want +got):\n%s", version, diff)
		}
	}
}

// TestBadRecords: every fault is named, with its field and what to do.
func TestBadRecords(t *testing.T) {
	for _, file := range files(t, "testdata/bad/*.json") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			c, err := decodeFile(t, file)
			if err == nil {
				t.Fatalf("got %+v, want an error", c)
			}
			golden(t, strings.TrimSuffix(file, ".json")+".err", strings.ReplaceAll(err.Error(), "; ", "\n")+"\n")
			if strings.Contains(err.Error(), "read by many") {
				t.Errorf("the error shows a secret: %s", err)
			}
		})
	}
}

func TestDecodeName(t *testing.T) {
	for _, name := range []string{"", "Web1", "a/b", ".."} {
		if _, err := Decode(name, "", map[string]any{"version": 1}); err == nil {
			t.Errorf("%q: got no error", name)
		}
	}
}

// TestPasswordsAreOrdered: the newest is the first, in whatever order they are
// stored.
func TestPasswordsAreOrdered(t *testing.T) {
	c, err := decodeFile(t, "testdata/good/host.json")
	if err != nil || c.Passwords[0].ID != "newer" || c.Passwords[1].ID != "older" {
		t.Errorf("got %v, %v, want newer before older", c, err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.json", "testdata/bad/*.json"} {
		list, err := filepath.Glob(pattern)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range list {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		fields, err := decodeRecord(data)
		if err != nil {
			return
		}
		c, err := Decode("web1", "", fields)
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		printed, err := encodeRecord(c)
		if err != nil {
			t.Fatalf("a record that was read cannot be printed: %v", err)
		}
		fields, err = decodeRecord(printed)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decode("web1", "", fields)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.Fields(), again.Fields()); diff != "" {
			t.Errorf("printed and read again (-want +got):\n%s", diff)
		}
	})
}
