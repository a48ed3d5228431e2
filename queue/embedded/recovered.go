package embedded

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nats-server/v2/server"
)

// ErrNotRecovered says that something that lies on the disk did not come back.
// The server only warns about that and goes on without it, and the queue would
// then be made anew over the old mail.
var ErrNotRecovered = errors.New("not recovered")

// listStore names the streams ("account/stream") and consumers
// ("account/stream/consumer") on the disk that hold something: messages, or the
// state of deliveries. Others may be the rest of a creation that was cut off,
// and nothing is lost with them.
func listStore(dir string) ([]string, error) {
	var found []string
	accounts, err := subdirectories(dir)
	if err != nil {
		return nil, err
	}
	for _, account := range accounts {
		streamsDir := filepath.Join(dir, account, "streams")
		streams, err := subdirectories(streamsDir)
		if err != nil {
			return nil, err
		}
		for _, stream := range streams {
			root := filepath.Join(streamsDir, stream)
			if holdsMessages(filepath.Join(root, "msgs")) {
				found = append(found, account+"/"+stream)
			}
			consumers, err := subdirectories(filepath.Join(root, "obs"))
			if err != nil {
				return nil, err
			}
			for _, consumer := range consumers {
				if i, err := os.Stat(filepath.Join(root, "obs", consumer, "o.dat")); err == nil && i.Size() > 0 {
					found = append(found, account+"/"+stream+"/"+consumer)
				}
			}
		}
	}
	return found, nil
}

func subdirectories(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the store: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func holdsMessages(dir string) bool {
	blocks, err := filepath.Glob(filepath.Join(dir, "*.blk"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(blocks, func(path string) bool {
		i, err := os.Stat(path)
		return err == nil && i.Size() > 0
	})
}

// checkRecovered compares what lay on the disk with what the server opened.
func checkRecovered(ns *server.Server, before []string) error {
	if len(before) == 0 {
		return nil
	}
	info, err := ns.Jsz(&server.JSzOptions{Accounts: true, Streams: true, Consumer: true, DirectConsumer: true, Limit: 1024})
	if err != nil {
		return fmt.Errorf("list recovered streams: %w", err)
	}
	have := make(map[string]bool)
	for _, account := range info.AccountDetails {
		for _, stream := range account.Streams {
			have[account.Name+"/"+stream.Name] = true
			for _, consumer := range slices.Concat(stream.Consumer, stream.DirectConsumer) {
				have[account.Name+"/"+stream.Name+"/"+consumer.Name] = true
			}
		}
	}
	missing := slices.DeleteFunc(slices.Clone(before), func(name string) bool { return have[name] })
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s; the data is still on the disk: repair or restore the directory before it is used again",
			ErrNotRecovered, strings.Join(missing, ", "))
	}
	return nil
}
