package daemon

import (
	"context"
	"fmt"
)

// Topics of notices that the roles listen to; see queue.Queue.Notify.
const (
	topicKeys         = "dkim"    // name: the domain
	topicClients      = "clients" // name: the client
	topicCertificates = "tls"     // name: the secret
)

// changing is a source that can be told of a change, so that it is in force at once and not at the next look.
type changing interface {
	// Changed says that somebody has changed what goes by this name. It does not block.
	Changed(name string)
}

// onNotice calls fn with the name of everything of a topic that somebody says has changed, until Stop. It does not block for long: notices of
// a topic come one after the other.
func (d *Daemon) onNotice(topic string, fn func(name string)) error {
	stop, err := d.queue.OnNotice(topic, fn)
	if err != nil {
		return fmt.Errorf("listen for changes of secrets: %w", err)
	}
	d.onStop(stageWork, "notices of "+topic, opsLimit, func(context.Context) error {
		stop()
		return nil
	})
	return nil
}

// follow tells a source of changes, if it wants to know.
func (d *Daemon) follow(topic string, source any) error {
	if s, is := source.(changing); is {
		return d.onNotice(topic, s.Changed)
	}
	return nil
}
