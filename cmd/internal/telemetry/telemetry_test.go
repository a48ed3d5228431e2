package telemetry

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLoggerFormats(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	NewLogger(file, LogOptions{}).Info("to a file")
	text, err := os.ReadFile(file.Name())
	if err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(text, &line); err != nil || line["msg"] != "to a file" {
		t.Errorf("got %q, %v, want JSON", text, err)
	}

	var b bytes.Buffer
	log := NewLogger(&b, LogOptions{Format: FormatText, Level: slog.LevelWarn})
	log.Info("not written")
	log.Warn("written", "msg_id", "x")
	if got := b.String(); !strings.HasSuffix(got, "level=WARN msg=written msg_id=x\n") || strings.Contains(got, "not written") {
		t.Errorf("got %q, want one line of text", got)
	}
}

func TestRegistryKnowsTheVersion(t *testing.T) {
	families, err := NewRegistry("1.2.3").Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "relay_build_info" {
			if got := f.GetMetric()[0].GetLabel()[0].GetValue(); got != "1.2.3" {
				t.Errorf("got version %q, want 1.2.3", got)
			}
			return
		}
	}
	t.Error("relay_build_info is missing")
}
